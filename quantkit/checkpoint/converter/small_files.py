"""The small files of a checkpoint, as the converter sees them: links in a folder of its own."""

import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from quantkit.checkpoint.names import is_for_converters
from quantkit.checkpoint.tokenizer.source import FAST
from quantkit.core.apart import run_apart
from quantkit.core.documents import parse_json, parse_object
from quantkit.core.errors import CheckpointError, TokenizerError
from quantkit.core.files import AGAIN, has_file, read_file
from quantkit.core.writing import write_file

_CARD = "README.md"
# Of other JSON files some are lists, such as the modules.json of sentence-transformers.
_OBJECTS = (
    *(FAST, "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json"),
    *("config.json", "generation_config.json", "preprocessor_config.json", "processor_config.json"),
)
_SECONDS = 120


def link_small_files(place: Path, name: str) -> Path:
    """A folder of that name with links to the small files of another, in a folder of its own.

    The converter looks for nothing else, and what came as code is not even there. `remove` removes
    it.

    Raises:
        CheckpointError: one of them is a link to nowhere, a pipe or the like.

    """
    found = list(_small_files(place))
    folder = Path(tempfile.mkdtemp(prefix="quantkit-converter-")) / name
    _link(found, place, folder)
    return folder


def link_into(folder: Path, place: Path) -> None:
    """A new folder with links to the small files of another.

    Raises:
        CheckpointError: one of them is a link to nowhere, a pipe or the like.

    """
    _link(list(_small_files(place)), place, folder)


def _link(files: Sequence[Path], place: Path, folder: Path) -> None:
    folder.mkdir()
    for file in files:
        link = folder / file.relative_to(place)
        link.parent.mkdir(exist_ok=True)
        link.symlink_to(file.resolve())


def rewrite_config(folder: Path, config: Mapping[str, Any]) -> None:
    """Put a config.json in the place of the link that `link_small_files` made."""
    file = folder / "config.json"
    file.unlink()
    write_file(file, json.dumps(config, indent=2).encode())


def remove(folder: Path) -> None:
    """Remove what `link_small_files` made."""
    shutil.rmtree(folder.parent, ignore_errors=True)


def require_sound(place: Path) -> None:
    """Check that small files are what their names say, where the converter failed of something.

    Raises:
        CheckpointError: one cannot be read, or is not JSON; the sentence names it.
        TokenizerError: tokenizer.json is none.

    """
    for file in _small_files(place):
        if file.suffix == ".json":
            parse = parse_object if file.name in _OBJECTS else parse_json
            parse(read_file(file, error=CheckpointError), file, error=CheckpointError)
    fast = place / FAST
    if fast.is_file():
        from tokenizers import Tokenizer

        def work() -> None:
            Tokenizer.from_file(str(fast))

        run_apart(work, fast, seconds=_SECONDS, error=TokenizerError, fix=AGAIN)


def _small_files(place: Path, *, is_top: bool = True) -> Iterator[Path]:
    """Those of a folder and of the folders in it, each of which can be opened."""
    for entry in sorted(place.iterdir()):
        if is_for_converters(entry.name) or (entry.name == _CARD and entry.is_file()):
            if has_file(entry, error=CheckpointError):
                yield entry
        elif is_top and entry.is_dir() and not entry.name.startswith("."):
            yield from _small_files(entry, is_top=False)
