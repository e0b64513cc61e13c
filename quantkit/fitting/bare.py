"""A model as a GGUF without its weights, and mostly without its vocabulary: what headers tell."""

from pathlib import Path

from quantkit.checkpoint.gguf import Header, parse_header
from quantkit.families.model import KeyValue, Model
from quantkit.fitting.shape import Shape, shape_of_header
from quantkit.formats.gguf.layout import PlannedFile, lay_out
from quantkit.formats.gguf.metadata import ModelMetadata, bare_entries
from quantkit.planning.plan import outline_plan
from quantkit.planning.quants import all_quants


def bare_file(model: Model, name: str) -> PlannedFile:
    """A GGUF of a model without its vocabulary, as llama.cpp is asked about it."""
    return unquantized_file(model, name, bare_entries(model))


def unquantized_file(model: Model, name: str, entries: tuple[KeyValue, ...]) -> PlannedFile:
    """A GGUF of a model with such keys."""
    # Any encoding will do: llama.cpp's buffers hold activations, whose types do not depend on it.
    plan = outline_plan(model, all_quants()["bf16"], has_imatrix=False)
    (file,) = lay_out(plan, ModelMetadata(name, entries)).files
    return file


def header_of(file: PlannedFile) -> Header:
    """The header of a file that is planned, as whoever reads it finds it."""
    header = parse_header(file.header, file.n_bytes)
    assert header is not None  # noqa: S101 - it is all there
    return header


def shape_of(model: Model) -> Shape:
    """The shape of a model that its config.json describes."""
    header = header_of(bare_file(model, model.family))
    return shape_of_header(Path(model.family), header.metadata, header.tensors)
