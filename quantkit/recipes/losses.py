"""What rounding each tensor to each encoding costs: a sensitivity times an error.

Both factors are plain mappings, whoever measured them, so that the search knows neither models nor
texts. The product is a mean Kullback-Leibler divergence in nats: what the tensor alone, rounded so,
adds to the model's, to first order. That such losses add up is what the search assumes.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import msgspec

from quantkit.core.documents import decode, read_object
from quantkit.core.errors import FileError, PlanError
from quantkit.core.files import read_file
from quantkit.core.writing import replace_file

_VERSION = 1
_MOST = 2**26  # bytes of a file: 5,000 tensors with some 20 encodings each are 4 MB
_FIX = "measure it again"
_Share = Annotated[float, msgspec.Meta(ge=0, le=1e30)]


@dataclass(frozen=True, slots=True)
class Measured:
    """What was measured of one model, by the names that its tensors have in GGUF.

    ``sensitivities`` are mean divergences (nats) per unit of relative weighted error: of what a
    model's outputs lose when this tensor alone is rounded. ``errors`` are relative weighted errors
    by (tensor, encoding): the sum of importance times squared difference over that of importance
    times squared weight, with an importance of 1 where there is none. ``arch`` is the model's
    architecture in GGUF. ``basis`` says in one sentence what was measured, on what and how;
    ``imatrix`` is the sha256 of the importance matrix that the errors were weighted by.
    """

    arch: str
    sensitivities: Mapping[str, float]
    errors: Mapping[tuple[str, str], float] = field(default_factory=dict)
    basis: str = ""
    imatrix: str | None = None

    def loss(self, tensor: str, encoding: str) -> float | None:
        """The divergence (nats) that a tensor in an encoding adds; None where it is not known."""
        sensitivity = self.sensitivities.get(tensor)
        error = self.errors.get((tensor, encoding))
        return None if sensitivity is None or error is None else sensitivity * error


class _Tensor(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    sensitivity: _Share | None = None
    errors: dict[str, _Share] = {}


class _Document(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    version: int
    arch: str
    basis: str = ""
    imatrix: str | None = None
    tensors: dict[str, _Tensor]


def write_measured(path: Path, measured: Measured) -> None:
    """Keep what was measured as JSON, by tensor, in the order of their names.

    Raises:
        OutputError: ``path`` is a link or no file.
        OSError: it cannot be written.

    """
    tensors = {name: _Tensor(measured.sensitivities[name]) for name in measured.sensitivities}
    for (name, encoding), error in sorted(measured.errors.items()):
        tensors.setdefault(name, _Tensor()).errors[encoding] = error
    document = _Document(
        version=_VERSION,
        arch=measured.arch,
        basis=measured.basis,
        imatrix=measured.imatrix,
        tensors=dict(sorted(tensors.items())),
    )
    text = json.dumps(msgspec.to_builtins(document), indent=1, allow_nan=False)
    replace_file(path, f"{text}\n".encode())


def are_losses(path: Path) -> bool:
    """Whether a file is one that `write_measured` wrote, in whatever version."""
    try:
        document = read_object(path, most=_MOST)
    except FileError:
        return False
    return document.keys() >= {"version", "arch", "tensors"}


def read_measured(path: Path) -> Measured:
    """What `write_measured` kept.

    Raises:
        PlanError: it cannot be read, is of another version, or a number in it is none.

    """
    raw = read_file(path, most=_MOST, error=PlanError, fix=_FIX)
    document = decode(raw, _Document, path, error=PlanError, fix=_FIX)
    if document.version != _VERSION:
        raise PlanError(f"{path} was not written by this version of quantkit; {_FIX}.")
    tensors = document.tensors
    return Measured(
        arch=document.arch,
        sensitivities={n: t.sensitivity for n, t in tensors.items() if t.sensitivity is not None},
        errors={(n, kind): error for n, t in tensors.items() for kind, error in t.errors.items()},
        basis=document.basis,
        imatrix=document.imatrix,
    )
