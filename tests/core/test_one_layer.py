"""Files are opened, parsed and written in one place, and a search finds any other."""

import re
from pathlib import Path

import quantkit

_PACKAGE = Path(quantkit.__file__).parent

# What opens, parses or copies by itself, with none of the checks of `quantkit.core`.
_FORBIDDEN = re.compile(
    r"""(?<![\w.])(?<!def\ )open\(  # the builtin
      | \bio\.open\( | \bos\.open\( | \bos\.fdopen\(
      | \.open\((?:["']|mode)       # Path.open with a mode
      | \.(?:read|write)_(?:text|bytes)\((?!tensor|source|nested|absmax|scales|reference)
      | \bjson\.loads?\( | \byaml\.(?:safe_)?load | \btomllib\.loads?\(
      | \bpickle\.loads?\( | \bzipfile\.ZipFile\(
      | \bnp\.(?:load|memmap|fromfile)\( | \bGGUFReader\b | \bmetadata_load\b
      | \bshutil\.copy | \bos\.fdatasync\b | \bfcntl\b
    """,
    re.VERBOSE,
)

# The layer itself, and what is left to others with its reason.
_ALLOWED = {
    "core/files.py": "the layer: opens what is read",
    "core/writing.py": "the layer: opens what is written",
    "core/documents.py": "the layer: parses",
    "core/system.py": "the layer: what differs between systems",
    "core/apart.py": "an answer of a copy of this process, through a pipe",
    "core/profiles.py": "data that ships with quantkit",
    "cli/output.py": "the null device",
    "building/output.py": "opens the output folder, to lock it",
    "calibration/lockstep/scratch.py": "arrays in files that the layer opened",
    "calibration/lockstep/states.py": "arrays in files that the layer opened",
    "calibration/progress.py": "a value through JSON and back",
    "checkpoint/chat/llama.py": "arguments of tools in conversations of ours",
    "checkpoint/chat/process.py": "a process of its own: its pipes",
    "checkpoint/chat/rendering.py": "what that process says",
    "checkpoint/converter/channel.py": "what a process of its own says",
    "checkpoint/converter/child.py": "that process: what it is to do",
    "checkpoint/converter/library.py": "in that process, which may fail",
    "checkpoint/converter/stand_in.py": "runs in pip's process, alone",
    "checkpoint/pth.py": "a zip that the layer opened, on an unpickler of its own",
    "checkpoint/rows.py": "rows of a file that the layer opened",
    "checkpoint/tokenizer/fast.py": "the null device",
    "verification/layers.py": "tensors whose header the layer has read",
    "verification/proof.py": "an array that a process of its own has just written",
    "verification/llama.py": "lines from a process of its own",
    "verification/reference.py": "rows behind a header that the layer has read",
    "verification/tokens.py": "pipes from and to a process of its own",
    "verification/worker.py": "the request on a pipe",
}


def _found() -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for path in sorted(_PACKAGE.rglob("*.py")):
        lines = path.read_text(encoding="utf-8").splitlines()
        hits = [line.strip() for line in lines if _FORBIDDEN.search(line.split("  # ")[0])]
        if hits:
            found[path.relative_to(_PACKAGE).as_posix()] = hits
    return found


def test_nothing_else_opens_or_parses() -> None:
    others = {name: lines for name, lines in _found().items() if name not in _ALLOWED}
    assert others == {}


def test_every_exception_is_needed() -> None:
    assert {name for name in _ALLOWED if (_PACKAGE / name).exists()} <= _found().keys()
