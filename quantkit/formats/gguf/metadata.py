"""The key-value metadata of a GGUF, in the order and types that llama.cpp's converter writes.

General keys (names, licence, tags, base models) come from gguf-py's own heuristics over the model
card, ``config.json`` and the folder's name; the hyperparameters follow ``conversion/base.py`` and
``conversion/llama.py``; the vocabulary is ``checkpoint.tokenizer``'s.
"""

import reprlib
import shutil
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from quantkit.checkpoint.folder import Checkpoint
from quantkit.checkpoint.tokenizer import add_tokenizer
from quantkit.core.errors import CheckpointError
from quantkit.families.model import Hyperparameters, Model

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
    from gguf import GGUFWriter, naming_convention

    writer = GGUFWriter(path=None, arch=model.arch)
    writer.add_type("model")
    general = _add_general(writer, checkpoint, model, name)
    add_hyperparameters(writer, model.hparams)
    add_tokenizer(writer, checkpoint.path, checkpoint.config)
    entries = tuple(
        _pack_checked(checkpoint.path, key, entry) for key, entry in writer.kv_data[0].items()
    )
    base_name = name or naming_convention(
        general.name,
        general.basename,
        general.finetune,
        general.version,
        general.size_label,
        output_type=None,
    )
    file_name = base_name.strip().replace(" ", "-").replace("/", "-")
    return ModelMetadata(file_name, entries, model.remarks)


def add_hyperparameters(writer: "GGUFWriter", hparams: Hyperparameters) -> None:
    """Add the architecture's numbers to a writer."""
    writer.add_block_count(hparams.num_hidden_layers)
    writer.add_context_length(hparams.max_position_embeddings)
    writer.add_embedding_length(hparams.hidden_size)
    writer.add_feed_forward_length(hparams.intermediate_size)
    writer.add_head_count(hparams.num_attention_heads)
    writer.add_head_count_kv(hparams.num_key_value_heads)
    _add_rope_scaling(writer, hparams.rope.scaling)
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


def _add_rope_scaling(writer: "GGUFWriter", scaling: Mapping[str, Any]) -> None:
    from gguf import RopeScalingType

    kind, factor = scaling.get("rope_type"), scaling.get("factor")
    if factor is None or kind not in ("linear", "yarn"):
        return  # llama3 is written as a tensor of factors instead
    writer.add_rope_scaling_type(RopeScalingType(kind))
    writer.add_rope_scaling_factor(factor)
    if kind == "linear":
        return
    original = scaling.get("original_max_position_embeddings")
    if original is None:
        raise CheckpointError(
            "config.json asks for yarn rope scaling without original_max_position_embeddings; "
            "copy config.json from the original model."
        )
    writer.add_rope_scaling_orig_ctx_len(original)
    attention = scaling.get("attention_factor", scaling.get("attn_factor"))
    for value, add in (
        (scaling.get("extrapolation_factor"), writer.add_rope_scaling_yarn_ext_factor),
        (attention, writer.add_rope_scaling_yarn_attn_factor),
        (scaling.get("beta_fast"), writer.add_rope_scaling_yarn_beta_fast),
        (scaling.get("beta_slow"), writer.add_rope_scaling_yarn_beta_slow),
    ):
        if value is not None:
            add(value)


def _add_general(
    writer: "GGUFWriter", checkpoint: Checkpoint, model: Model, name: str | None
) -> "Metadata":
    """Add the ``general`` keys, as gguf-py finds them, and return them."""
    import gguf
    import yaml

    total, shared, expert, n_experts = count_parameters(model)
    folder = checkpoint.path.resolve()
    try:
        with _named(checkpoint, folder) as named:
            general = gguf.Metadata.load(None, named, name, total)
        # gguf-py 0.19.0 does not know the Hub's usual name for this sampling setting yet.
        if general.sampling_penalty_repeat is None:
            generation = gguf.Metadata.load_generation_config(folder)
            general.sampling_penalty_repeat = generation.get("repetition_penalty")
        if general.name is None:
            general.name = checkpoint.name
        if general.size_label is None:
            general.size_label = gguf.size_label(total, shared, expert, n_experts)
        general.set_gguf_meta_model(writer)
    except (yaml.YAMLError, ValueError, TypeError, AttributeError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise CheckpointError(
            f"The model card or generation_config.json in {folder} cannot be read ({reason}); "
            "mend or remove it."
        ) from None
    return general


@contextmanager
def _named(checkpoint: Checkpoint, folder: Path) -> Iterator[Path]:
    """A folder of the checkpoint's name with what gguf-py reads to describe it.

    The name is half of what it goes by, and in the Hub's cache folders are named after commits.
    """
    if folder.name == checkpoint.name:
        yield folder
        return
    with TemporaryDirectory(prefix="quantkit-") as parent:
        named = Path(parent, checkpoint.name)
        named.mkdir()
        for file in ("README.md", "config.json", "generation_config.json"):
            if (folder / file).is_file():
                shutil.copyfile(folder / file, named / file)
        yield named


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
            f"{folder} gives {key} as {reprlib.repr(entry.value)}, which GGUF cannot hold as "
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
