"""What ``quantkit.json`` holds, as types: everything that code relies on, and its bounds.

An entry that is not of this form describes nothing; its neighbours stand for themselves.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec

from quantkit.core.documents import to_type
from quantkit.core.errors import FileError, OutputError
from quantkit.core.names import is_plain_name
from quantkit.core.printable import quoted

_Count = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
_Sum = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]


class _File(msgspec.Struct, frozen=True):
    name: str
    bytes: _Count
    sha256: _Sum
    node: str | None = None


class _SourceFile(msgspec.Struct, frozen=True):
    name: str
    bytes: _Count
    sha256: _Sum | None = None
    modified_ns: int | None = None
    verified: bool = True


class _Source(msgspec.Struct, frozen=True):
    weights: list[_SourceFile]
    settings: list[_SourceFile] = []
    name: str = ""
    family: str = ""
    described_by: str = ""
    mtp: bool | None = None
    repo_id: str | None = None
    commit: str | None = None
    path: str | None = None


class _Kernel(msgspec.Struct, frozen=True):
    name: str
    version: str
    search: str = "ggml"


class _Imatrix(msgspec.Struct, frozen=True):
    file: str
    sha256: Annotated[str, msgspec.Meta(pattern="^([0-9a-f]{64})?$")]  # none: still to be made


class _Details(msgspec.Struct, frozen=True, rename={"llama": "llama.cpp"}):
    llama: dict[str, Any] = {}


class _Smoke(msgspec.Struct, frozen=True):
    ok: bool = False
    verdict: str = ""
    tokens_per_second: float | None = None
    text: str | None = None
    load_seconds: float | None = None
    details: _Details | None = None


class _Routing(msgspec.Struct, frozen=True):
    tokens: list[int]
    borrowed: list[int]


class _Calibration(msgspec.Struct, frozen=True):
    text: list[str]
    chunks: _Count
    context: _Count
    device: str = "cpu"
    routing: list[_Routing] = []


class _Recipe(msgspec.Struct, frozen=True):
    version: int
    arch: str
    base: str
    shapes: _Sum
    types: dict[str, str]
    weighted: bool = False
    basis: str = ""


class _Candidate(msgspec.Struct, frozen=True):
    """A file that might have been delivered; ``failure`` says why it was not measured."""

    way: str
    quant: str
    bytes: _Count
    plan_sha256: _Sum
    kld: float | None = None  # mean, in nats
    kld_pm: float | None = None  # its standard error
    failure: str = ""
    delivered: bool = False


class _Choice(msgspec.Struct, frozen=True):
    """How an artifact was chosen of several; ``why`` says why it was not ``measured``."""

    measured: bool
    why: str = ""
    text: str = ""
    text_sha256: Annotated[str, msgspec.Meta(pattern="^([0-9a-f]{64})?$")] = ""
    context: _Count = 0
    windows: _Count = 0
    reference: str = ""
    candidates: list[_Candidate] = []


class _Entry(msgspec.Struct, frozen=True):
    quant: str
    plan_sha256: str
    files: Annotated[list[_File], msgspec.Meta(min_length=1, max_length=99_999)]
    source: _Source
    kernel: _Kernel
    bits_per_weight: Annotated[float, msgspec.Meta(gt=0, le=64)]
    parameters: _Count
    quantkit: str
    imatrix: _Imatrix | None = None
    smoke: _Smoke | None = None
    calibration: _Calibration | None = None
    published: str | None = None
    remarks: list[str] = []
    takes: list[Literal["vision", "audio"]] | None = None  # of a projector, which is not a model
    tools: dict[str, str] = {}
    experts: Annotated[int, msgspec.Meta(ge=0, le=2**20)] = 0  # in a layer
    quantization_config: dict[str, Any] = {}
    recipe: _Recipe | None = None
    choice: _Choice | None = None


def fault_of(name: str, entry: Any) -> str | None:
    """What is wrong with an entry, as the rest of a sentence; None if it is sound."""
    try:
        found = to_type(entry, _Entry, "", error=FileError, fix="")
    except FileError as error:
        return str(error).strip(" ;.").removeprefix("is not laid out as expected ").strip("()")
    imatrix = found.imatrix.file if found.imatrix else "none"
    for value in (name, imatrix):
        if not is_plain_name(value):
            return f"{quoted(value)} is not the name of a file"
    for file in found.files:
        if not all(map(is_plain_name, file.name.split("/"))):
            return f"{quoted(file.name)} is none of its folder's files"
    return None


def require_sound(
    manifest: Mapping[str, Any], origin: object, fix: str = "build or download again"
) -> None:
    """Refuse a manifest with an entry that describes nothing.

    Raises:
        OutputError: there is one.

    """
    for name, entry in manifest["artifacts"].items():
        if fault := fault_of(name, entry):
            raise OutputError(
                f"{origin} describes {quoted(name)} in a way that this version of quantkit did not "
                f"write ({fault}); {fix}."
            )
