"""What a run that goes layer by layer has finished, on disk, so that a killed one resumes."""

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from quantkit.build.output import locked, naming_failures
from quantkit.core.documents import parse_object
from quantkit.core.errors import FileError
from quantkit.core.files import read_file
from quantkit.core.writing import is_own, refuse_links, replace_file

_NAME = "journal.json"
_MOST_BYTES = 2**29
_OURS = (".json", ".new", ".f32", ".npz", ".gguf", ".safetensors")


class Journal:
    """The layers that are done, each with a record, in a folder of this run's own.

    Of a folder of another run (other weights, text or settings) nothing serves: ``lost`` layers.
    ``start`` empties it.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any]) -> None:
        self.folder = folder
        self._identity = json.loads(json.dumps(identity))
        self.layers: list[Any] = []
        self.lost = 0
        document = _read(folder / _NAME)
        layers = document.get("layers")
        if not isinstance(layers, list):
            return
        if document.get("identity") == self._identity:
            self.layers = layers
        else:
            self.lost = len(layers)

    def start(self) -> None:
        """Empty the folder where nothing in it serves."""
        if self.layers:
            return
        for entry in self.folder.iterdir():
            if entry.suffix in _OURS:
                entry.unlink()

    def record(self, layer: Any) -> None:
        """One more layer is done; everything of it must be on the disk already."""
        self.layers.append(layer)
        path = self.folder / _NAME
        text = json.dumps({"identity": self._identity, "layers": self.layers})
        replace_file(path, text.encode(), path.with_suffix(".new"))


@contextmanager
def working_folder(folder: Path, missing: int) -> Iterator[None]:
    """Hold a folder for what must survive a kill, and delete it once all is done.

    Raises:
        OutputError: it cannot be made or written, or another run holds it.

    """
    refuse_links(folder)
    with locked(folder), naming_failures(folder, lambda: missing):
        yield
        shutil.rmtree(folder)


def _read(path: Path) -> dict[str, Any]:
    if not is_own(path):
        return {}
    try:
        document = parse_object(read_file(path, most=_MOST_BYTES, follow=False), path)
        return {"identity": document["identity"], "layers": list(document["layers"])}
    except (FileError, KeyError, TypeError):
        return {}
