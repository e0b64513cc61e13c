"""What quantkit knows of llama.cpp, and in words what another version changed.

``python vendor/known.py`` compares the tree that ``vendor/build.py`` left with ``known.toml``, the
summary of the version that quantkit was last held to; ``--write`` writes a new summary. The native
tests make the same comparison. ``docs/updating-llama.cpp.md`` says what follows from a difference.
"""

import ast
import hashlib
import re
import runpy
import sys
import textwrap
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
KNOWN = HERE / "known.toml"
TREE = HERE / "build" / "llama.cpp"

# What each part is, in the order in which it is told. An entry is a word, or NAME=VALUE.
PARTS = {
    "types": "ggml types (number, elements and bytes of a block)",
    "file_types": "file types of llama-quantize",
    "rules": "functions of src/llama-quant.cpp",
    "keys": "metadata keys",
    "architectures": "architectures",
    "tensors": "tensor names",
    "converters": "converter classes",
    "projectors": "converter classes of projectors",
}

Summary = Mapping[str, frozenset[str]]


def summarize(tree: Path) -> Summary:
    """The parts of a tree of llama.cpp."""
    # It imports nothing of its package, and leaves no bytecode in the tree this way.
    constants = runpy.run_path(str(tree / "gguf-py" / "gguf" / "constants.py"))
    converters = (tree / "conversion" / "__init__.py").read_text(encoding="utf-8")
    sizes = constants["GGML_QUANT_SIZES"].items()
    found = {
        "types": (f"{kind.name}={kind.value},{n},{size}" for kind, (n, size) in sizes),
        "file_types": (f"{kind.name}={kind.value}" for kind in constants["LlamaFileType"]),
        "rules": functions((tree / "src" / "llama-quant.cpp").read_text(encoding="utf-8")),
        "keys": strings(constants["Keys"]),
        "architectures": constants["MODEL_ARCH_NAMES"].values(),
        "tensors": constants["TENSOR_NAMES"].values(),
        "converters": pairs(converters, "TEXT_MODEL_MAP"),
        "projectors": pairs(converters, "MMPROJ_MODEL_MAP"),
    }
    return {part: frozenset(entries) for part, entries in found.items()}


def functions(source: str) -> Iterator[str]:
    """NAME=HASH of every function of a C++ file, without its comments and layout."""
    for match in re.finditer(r"^[a-z][^\n;{}]*?\b(\w+)\([^{};]*\) \{\n.*?^\}", source, re.M | re.S):
        code = re.sub(r"//[^\n]*|/\*.*?\*/", "", match[0], flags=re.S)
        digest = hashlib.sha256(" ".join(code.split()).encode()).hexdigest()
        yield f"{match[1]}={digest[:12]}"


def strings(group: type) -> Iterator[str]:
    """All strings of a class and of the classes in it."""
    for name, value in vars(group).items():
        if isinstance(value, str) and not name.startswith("__"):
            yield value
        elif isinstance(value, type):
            yield from strings(value)


def pairs(source: str, name: str) -> Iterator[str]:
    """NAME=VALUE of a table of strings in a Python file, which is not run."""
    for node in ast.parse(source).body:
        if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == name and node.value:
            table: dict[str, str] = ast.literal_eval(node.value)
            yield from (f"{key}={value}" for key, value in table.items())


def tell(known: Summary, now: Summary) -> list[str]:
    """A line for each part that differs: what came (+), went (-), and is another now (~)."""
    lines = []
    for part, title in PARTS.items():
        before, after = values(known[part]), values(now[part])
        came = [f"+ {name}" for name in sorted(after.keys() - before.keys())]
        went = [f"- {name}" for name in sorted(before.keys() - after.keys())]
        changed = [
            f"~ {name}" + ("" if part == "rules" else f" ({before[name]} -> {after[name]})")
            for name in sorted(before.keys() & after.keys())
            if before[name] != after[name]
        ]
        if came or went or changed:
            lines.append(f"{title}: {', '.join(came + went + changed)}")
    return lines


def values(entries: frozenset[str]) -> dict[str, str]:
    """NAME to VALUE; a word has none."""
    return {name: value for name, _, value in (entry.partition("=") for entry in entries)}


def to_toml(summary: Summary, version: str) -> str:
    """The text of ``known.toml``."""
    text = f'# Made by `python vendor/known.py --write`. See it.\nversion = "{version}"\n'
    for part in PARTS:
        words = " ".join(sorted(summary[part]))
        lines = textwrap.fill(words, 116, break_long_words=False, break_on_hyphens=False)
        text += f'\n{part} = """\n{lines}\n"""\n'
    return text


def from_toml(text: str) -> tuple[Summary, str]:
    """The summary and its version."""
    document: dict[str, Any] = tomllib.loads(text)
    return {part: frozenset(document[part].split()) for part in PARTS}, document["version"]


def main() -> int:
    manifest = tomllib.loads((HERE / "manifest.toml").read_text(encoding="utf-8"))
    version, now = manifest["source"]["version"], summarize(TREE)
    if sys.argv[1:] == ["--write"]:
        KNOWN.write_text(to_toml(now, version), encoding="utf-8")
        return 0
    known, before = from_toml(KNOWN.read_text(encoding="utf-8"))
    lines = tell(known, now)
    print(f"{before} -> {version}:", *(lines or ["nothing that quantkit knows of"]), sep="\n  ")
    return bool(lines)


if __name__ == "__main__":
    sys.exit(main())
