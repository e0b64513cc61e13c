"""The key-value metadata of a GGUF, in the order and types that llama.cpp's converter writes.

General keys (names, licence, tags, base models) come from gguf-py's own heuristics over the model
card, ``config.json`` and the folder's name; the hyperparameters follow ``conversion/base.py`` and
``conversion/llama.py``; the vocabulary is ``checkpoint.tokenizer``'s.
"""

import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantkit.checkpoint.card import read_front_matter
from quantkit.checkpoint.folder import Checkpoint, read_json
from quantkit.checkpoint.tokenizer import add_tokenizer
from quantkit.checkpoint.tokenizer.chat_template import chat_remarks
from quantkit.core.errors import CheckpointError
from quantkit.core.files import has_file
from quantkit.core.names import is_plain_name
from quantkit.core.printable import quoted
from quantkit.families.model import Hyperparameters, Model, Rope
from quantkit.families.rope import yarn_magnitude

if TYPE_CHECKING:
    from gguf import GGUFValue, GGUFWriter, Metadata


@dataclass(frozen=True, slots=True)
class KeyValue:
    """One metadata entry: its key, and key, type and value as they lie in the file."""

    key: str
    packed: bytes


@dataclass(frozen=True, slots=True)
class ModelMetadata:
    """What every quant of one model has in common.

    ``base_name`` is the file name without the quant, by the GGUF naming rules. ``remarks`` are
    sentences about what the file cannot say of the checkpoint: the model's, and others'.
    """

    base_name: str
    entries: tuple[KeyValue, ...]
    remarks: tuple[str, ...] = ()


def describe_checkpoint(
    checkpoint: Checkpoint, model: Model, name: str | None = None
) -> ModelMetadata:
    """The metadata of a checkpoint, without what differs from quant to quant.

    Args:
        checkpoint: the source folder, for the model card and the tokenizer.
        model: its config made concrete.
        name: the model's name, instead of the one found; it then also names the files.

    Raises:
        CheckpointError: the model card or the generation config cannot be read.
        TokenizerError: the tokenizer is missing or of a kind llama.cpp cannot hold.

    """
    from gguf import GGUFWriter

    writer = GGUFWriter(path=None, arch=model.arch)
    writer.add_type("model")
    general = _add_general(writer, checkpoint, model, name)
    add_hyperparameters(writer, model.hparams)
    add_tokenizer(writer, checkpoint.path, checkpoint.config)
    keys = {key: entry.value for key, entry in writer.kv_data[0].items()}
    remarks = (*model.remarks, *chat_remarks(checkpoint.path, keys))
    entries = tuple(
        _pack_checked(checkpoint.path, key, entry) for key, entry in writer.kv_data[0].items()
    )
    return ModelMetadata(_file_name(checkpoint.path, name, general), entries, remarks)


def _file_name(folder: Path, name: str | None, general: "Metadata") -> str:
    """The file name without the quant, which nothing in a model card makes a path."""
    from gguf import naming_convention

    try:
        base_name = name or naming_convention(
            general.name,
            general.basename,
            general.finetune,
            general.version,
            general.size_label,
            output_type=None,
        )
        file_name = base_name.strip().replace(" ", "-").replace("/", "-")
    except (TypeError, AttributeError):
        file_name = ""
    if not is_plain_name(file_name[:_SHOWN]):  # how long it may be is the output folder's affair
        raise CheckpointError(
            f"The model in {folder} is called {quoted(name or general.name)}, which cannot name a "
            "file; give another with --name."
        )
    return file_name


def add_hyperparameters(writer: "GGUFWriter", hparams: Hyperparameters) -> None:
    """Add the architecture's numbers to a writer."""
    writer.add_block_count(hparams.num_hidden_layers)
    writer.add_context_length(hparams.max_position_embeddings)
    writer.add_embedding_length(hparams.hidden_size)
    writer.add_feed_forward_length(hparams.intermediate_size)
    writer.add_head_count(hparams.num_attention_heads)
    writer.add_head_count_kv(hparams.num_key_value_heads)
    _add_rope_scaling(writer, hparams.rope)
    writer.add_rope_freq_base(hparams.rope.theta)
    writer.add_layer_norm_rms_eps(hparams.rms_norm_eps)
    if hparams.num_local_experts:
        writer.add_expert_count(hparams.num_local_experts)
        writer.add_expert_used_count(hparams.num_experts_per_tok)
    if hparams.states_head_dim:
        writer.add_key_length(hparams.head_dim)
        writer.add_value_length(hparams.head_dim)
    writer.add_vocab_size(hparams.vocab_size)
    writer.add_rope_dimension_count(hparams.head_dim)


def _add_rope_scaling(writer: "GGUFWriter", rope: Rope) -> None:
    from gguf import RopeScalingType

    usual = 1.0  # what llama.cpp multiplies sine and cosine by of its own accord
    if rope.form:
        writer.add_rope_scaling_type(RopeScalingType(rope.form))
        if rope.factor is not None:
            writer.add_rope_scaling_factor(rope.factor)
        if rope.original_context is not None:
            writer.add_rope_scaling_orig_ctx_len(rope.original_context)
    if rope.form == "yarn":
        assert rope.factor is not None  # noqa: S101 - yarn has one
        usual = yarn_magnitude(rope.factor)
        # As the converter writes them; llama.cpp's architecture llama reads none of them.
        scaling = rope.scaling
        attention = scaling.get("attention_factor", scaling.get("attn_factor"))
        for value, add in (
            (scaling.get("extrapolation_factor"), writer.add_rope_scaling_yarn_ext_factor),
            (attention, writer.add_rope_scaling_yarn_attn_factor),
            (scaling.get("beta_fast"), writer.add_rope_scaling_yarn_beta_fast),
            (scaling.get("beta_slow"), writer.add_rope_scaling_yarn_beta_slow),
        ):
            if value is not None:
                add(value)
    if not math.isclose(rope.magnitude, usual, rel_tol=1e-7):
        writer.add_rope_scaling_attn_factors(rope.magnitude / usual)


def _add_general(
    writer: "GGUFWriter", checkpoint: Checkpoint, model: Model, name: str | None
) -> "Metadata":
    """Add the ``general`` keys, as gguf-py finds them, and return them."""
    import gguf

    total, shared, expert, n_experts = count_parameters(model)
    folder = checkpoint.path
    card = read_front_matter(folder / "README.md")
    config = _optional(folder / "config.json")
    generation = _optional(folder / "generation_config.json")
    try:
        # A name is half of what it goes by, and in the Hub's cache folders are named after commits.
        named = Path(checkpoint.name)
        general = gguf.Metadata.apply_metadata_heuristic(
            gguf.Metadata(), card, config, named, total
        )
        for setting in _SAMPLING:
            setattr(general, f"sampling_{setting}", generation.get(setting))
        general.sampling_temp = generation.get("temperature")
        # gguf-py 0.19.0 does not know the Hub's usual name for this sampling setting yet.
        if general.sampling_penalty_repeat is None:
            general.sampling_penalty_repeat = generation.get("repetition_penalty")
        if name is not None:
            general.name = name
        if general.name is None:
            general.name = checkpoint.name
        if general.size_label is None:
            general.size_label = gguf.size_label(total, shared, expert, n_experts)
        general.set_gguf_meta_model(writer)
    except (ValueError, TypeError, AttributeError, KeyError, IndexError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise CheckpointError(
            f"The model card or generation_config.json in {folder} cannot be read ({reason}); "
            "mend or remove it."
        ) from None
    return general


_SHOWN = 100

# What gguf-py takes from generation_config.json under the same name.
_SAMPLING = (
    *("sequence", "top_k", "top_p", "min_p", "xtc_probability", "xtc_threshold"),
    *("penalty_last_n", "penalty_repeat", "mirostat", "mirostat_tau", "mirostat_eta"),
)


def _optional(path: Path) -> dict[str, Any]:
    """A JSON object, empty where the file is not there."""
    return read_json(path) if has_file(path, error=CheckpointError) else {}


def count_parameters(model: Model) -> tuple[int, int, int, int]:
    """Elements of a model's tensors: in all, outside experts, of one expert; and the experts."""
    experts = [target for target in model.targets if target.role.endswith("_exps")]
    total = sum(target.n_elements for target in model.targets)
    in_experts = sum(target.n_elements for target in experts)
    one_expert = sum(target.n_elements // target.shape[0] for target in experts)
    return total, total - in_experts, one_expert, experts[0].shape[0] if experts else 0


def _pack_checked(folder: Path, key: str, entry: "GGUFValue") -> KeyValue:
    try:
        return KeyValue(key, pack(key, entry))
    except (TypeError, ValueError, OverflowError, struct.error):
        raise CheckpointError(
            f"{folder} gives {key} as {quoted(entry.value)}, which GGUF cannot hold as "
            f"{entry.type.name}; correct it in the model card, config.json or "
            "generation_config.json."
        ) from None


def pack(key: str, entry: "GGUFValue") -> bytes:
    """A metadata entry as bytes: key, type, value, little-endian.

    Raises:
        TypeError, ValueError, OverflowError, struct.error: the value is not of its type.

    """
    from gguf import GGUFValueType

    if entry.type != GGUFValueType.ARRAY:
        return _string(key) + struct.pack("<i", entry.type) + _scalar(entry.type, entry.value)
    items = entry.value
    kind = entry.sub_type
    if kind is None:
        kind = GGUFValueType.UINT8 if isinstance(items, bytes) else GGUFValueType.get_type(items[0])
    head = _string(key) + struct.pack("<iiQ", entry.type, kind, len(items))
    code = _CODES.get(kind.name)
    if code is None:
        return head + b"".join(_string(item) for item in items)
    return head + struct.pack(f"<{len(items)}{code}", *items)


# struct codes of the plain GGUF value types.
_CODES = {
    "UINT8": "B",
    "INT8": "b",
    "UINT16": "H",
    "INT16": "h",
    "UINT32": "I",
    "INT32": "i",
    "FLOAT32": "f",
    "BOOL": "?",
    "UINT64": "Q",
    "INT64": "q",
    "FLOAT64": "d",
}


def _scalar(kind: Any, value: Any) -> bytes:
    code = _CODES.get(kind.name)
    return _string(value) if code is None else struct.pack(f"<{code}", value)


def _string(text: str | bytes) -> bytes:
    data = text.encode("utf-8") if isinstance(text, str) else text
    if not isinstance(data, bytes | bytearray):
        raise TypeError(f"{text!r} is not a text")  # bytes(2) would be two zeros
    return struct.pack("<Q", len(data)) + data
