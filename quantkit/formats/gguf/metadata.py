"""The key-value metadata of a GGUF, in the order and types that llama.cpp's converter writes.

General keys (names, licence, tags, base models) come from gguf-py's own heuristics over the model
card, ``config.json`` and the folder's name; how the model computes is its family's to say
(``families.keys``); the vocabulary is ``checkpoint.tokenizer``'s. A GGUF's keys are copied.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantkit.checkpoint.names import without_shard
from quantkit.core.errors import CheckpointError
from quantkit.core.files import has_file
from quantkit.core.names import is_plain_name
from quantkit.core.printable import quoted
from quantkit.families.keys import Kind, pack_checked, packed_entry
from quantkit.families.model import KeyValue, Model

if TYPE_CHECKING:
    from gguf import GGUFWriter, Metadata

    from quantkit.checkpoint.checkpoint import Checkpoint


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
    checkpoint: "Checkpoint", model: Model, name: str | None = None
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

    from quantkit.checkpoint.tokenizer import add_tokenizer
    from quantkit.checkpoint.tokenizer.chat_template import chat_remarks

    if checkpoint.header is not None:
        return _copied(checkpoint, model, name)
    if checkpoint.description is not None:
        return _described(checkpoint, model, name)
    writer = GGUFWriter(path=None, arch=model.arch)
    writer.add_type("model")
    general = _add_general(writer, checkpoint, model, name)
    n_general = len(writer.kv_data[0])
    add_tokenizer(writer, checkpoint.path, checkpoint.config)
    found = writer.kv_data[0]
    values = {key: entry.value for key, entry in found.items()}
    remarks = (*model.remarks, *chat_remarks(checkpoint.path, values))
    origin = str(checkpoint.path)
    packed = [pack_checked(origin, k, e.value, e.type, e.sub_type) for k, e in found.items()]
    entries = (*packed[:n_general], *model.keys, *packed[n_general:])
    return ModelMetadata(_file_name(checkpoint.path, name, general), entries, remarks)


def base_name_of(checkpoint: "Checkpoint", model: Model, name: str | None = None) -> str:
    """What files of a checkpoint are called, where no GGUF is made of it.

    Raises:
        CheckpointError: the model card or the generation config cannot be read.

    """
    from gguf import GGUFWriter

    writer = GGUFWriter(path=None, arch=model.arch)
    return _file_name(checkpoint.path, name, _add_general(writer, checkpoint, model, name))


def describe_projector_of(
    base_name: str, projector: Model, name: str | None = None
) -> ModelMetadata:
    """The metadata that llama.cpp's converter gives the vision or audio part of a model.

    Args:
        base_name: what the model's own files are called.
        projector: the part.
        name: the model's name, instead of the one that the converter finds.

    """
    return ModelMetadata(base_name, _renamed(projector.keys, name), projector.remarks)


def bare_entries(model: Model) -> tuple[KeyValue, ...]:
    """The metadata that llama.cpp needs to load a model without its vocabulary."""
    return (
        packed_entry("general.architecture", model.arch, Kind.STRING),
        *model.keys,
        packed_entry("tokenizer.ggml.model", "none", Kind.STRING),
    )


def _copied(checkpoint: "Checkpoint", model: Model, name: str | None) -> ModelMetadata:
    """The metadata of a GGUF for another, as llama-quantize copies it, under another name if any.

    What differs from quant to quant comes last (see `layout.lay_out`).
    """
    stem = without_shard(checkpoint.files[0].name)
    base_name = name or _UNQUANTIZED.sub("", stem) or stem
    file_name = base_name.strip().replace(" ", "-").replace("/", "-")
    if not is_plain_name(file_name[:_SHOWN]):
        raise CheckpointError(
            f"{quoted(base_name)} cannot name a file; give another name with --name."
        )
    return ModelMetadata(file_name, _renamed(model.keys, name), model.remarks)


def _renamed(keys: tuple[KeyValue, ...], name: str | None) -> tuple[KeyValue, ...]:
    """The keys of a model that is called otherwise."""
    if name is None:
        return keys
    renamed = packed_entry(_NAME, name, Kind.STRING)
    return tuple(renamed if entry.key == _NAME else entry for entry in keys)


def _described(checkpoint: "Checkpoint", model: Model, name: str | None) -> ModelMetadata:
    """The metadata that llama.cpp's converter gives a checkpoint, as `_copied` copies a GGUF's."""
    from gguf import Metadata

    from quantkit.checkpoint.tokenizer.chat_template import chat_remarks

    assert checkpoint.description is not None  # noqa: S101 - it was described
    said = checkpoint.description.header.metadata
    fields = ("name", "basename", "finetune", "version", "size_label")
    general = Metadata(**{field: said.get(f"general.{field}") for field in fields})
    file_name = _file_name(checkpoint.path, name, general)
    remarks = (*model.remarks, *chat_remarks(checkpoint.path, said))
    return ModelMetadata(file_name, _renamed(model.keys, name), remarks)


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


def _add_general(
    writer: "GGUFWriter", checkpoint: "Checkpoint", model: Model, name: str | None
) -> "Metadata":
    """Add the ``general`` keys, as gguf-py finds them, and return them."""
    import gguf

    from quantkit.checkpoint.card import read_front_matter

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
            "correct or remove it."
        ) from None
    return general


_SHOWN = 100
_NAME = "general.name"
_UNQUANTIZED = re.compile(r"[-_.](bf16|f16|fp16|f32|fp32)$", re.IGNORECASE)

# What gguf-py takes from generation_config.json under the same name.
_SAMPLING = (
    *("sequence", "top_k", "top_p", "min_p", "xtc_probability", "xtc_threshold"),
    *("penalty_last_n", "penalty_repeat", "mirostat", "mirostat_tau", "mirostat_eta"),
)


def _optional(path: Path) -> dict[str, Any]:
    """A JSON object, empty where the file is not there."""
    from quantkit.checkpoint.folder import read_json

    return read_json(path) if has_file(path, error=CheckpointError) else {}


def count_parameters(model: Model) -> tuple[int, int, int, int]:
    """Elements of a model's tensors: in all, outside experts, of one expert; and the experts."""
    experts = [target for target in model.targets if target.role.endswith("_exps")]
    total = sum(target.n_elements for target in model.targets)
    in_experts = sum(target.n_elements for target in experts)
    one_expert = sum(target.n_elements // target.shape[0] for target in experts)
    return total, total - in_experts, one_expert, experts[0].shape[0] if experts else 0
