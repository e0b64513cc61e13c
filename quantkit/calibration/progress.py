"""What a run that goes layer by layer has finished, on disk, so that a killed one resumes."""

import json
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import msgspec

from quantkit.calibration.routing import Routing
from quantkit.core.documents import parse_object, to_type
from quantkit.core.errors import FileError
from quantkit.core.files import read_file
from quantkit.core.writing import is_own, replace_file

_NAME = "journal.json"
_OURS = (".json", ".new", ".f32", ".npz", ".gguf", ".safetensors")  # .npz: of earlier versions

_Crc = Annotated[int, msgspec.Meta(ge=0, lt=2**32)]


class Layer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is on record of a finished layer.

    ``states`` is the CRC-32 of the activations that it left, ``crcs`` that of everything else that
    was written of it, by name; ``routing`` is None in a model without experts.
    """

    states: _Crc
    crcs: dict[str, _Crc] = {}
    routing: Routing | None = None


class _Document(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    identity: dict[str, Any]
    layers: list[Layer]
    crc: _Crc
    """Of the other two, as JSON: whatever was changed in this file, it is noticed."""


class LayerJournal:
    """The layers that are done, each with a record, in a folder of this run's own.

    Of a folder of another run (other weights, text or settings) nothing serves: ``lost`` layers.
    Nor does a journal that is not as it was written: it is ``damaged``. ``start`` empties the
    folder then.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any], n_layers: int) -> None:
        self.folder = folder
        self._identity = json.loads(json.dumps(identity))
        self.layers: list[Layer] = []
        self.lost = 0
        self.damaged = False
        path = folder / _NAME
        if not path.is_symlink() and not path.exists():
            return
        document = _read(path)
        if document is None or len(document.layers) > n_layers:
            self.damaged = True
        elif document.identity == self._identity:
            self.layers = document.layers
        else:
            self.lost = len(document.layers)

    def start(self, say: Callable[[str], None]) -> None:
        """Empty the folder where nothing in it serves, and say what of another run is lost."""
        if self.lost:
            say(
                f"{self.folder} holds {self.lost} layers of an interrupted run over other "
                "weights, text or settings, which are of no use here; they are deleted."
            )
        if self.damaged:
            say(f"{self.folder} holds an interrupted run whose journal is damaged; it is deleted.")
        if self.layers:
            return
        for entry in self.folder.iterdir():
            if entry.suffix in _OURS:
                entry.unlink()

    def record(self, layer: Layer) -> None:
        """One more layer is done; everything of it must be on the disk already."""
        self.layers.append(layer)
        path = self.folder / _NAME
        layers = msgspec.to_builtins(self.layers)
        document = {
            "identity": self._identity,
            "layers": layers,
            "crc": _crc_of(self._identity, layers),
        }
        replace_file(path, json.dumps(document).encode(), path.with_suffix(".new"))


def _read(path: Path) -> _Document | None:
    """A journal as it was written, None if it is anything else."""
    if not is_own(path):
        return None
    try:
        found = parse_object(read_file(path, follow=False), path)
        document = to_type(found, _Document, path)
    except FileError:
        return None
    return document if document.crc == _crc_of(found["identity"], found["layers"]) else None


def _crc_of(identity: Any, layers: Any) -> int:
    return zlib.crc32(json.dumps([identity, layers]).encode())
