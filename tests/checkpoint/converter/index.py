"""A package index of two files: a source archive with a small llama.cpp, and a wheel."""

import hashlib
import io
import tarfile
import zipfile
from pathlib import Path

from quantkit.checkpoint.converter.pins import Pins

PACKAGE, VERSION = "llama-cpp-python", "9.9.9"
TREE = "vendor/llama.cpp"
OVERLAY = "transformers-for-tests"

# The build backend that the real archive names, and what would be run if anything were.
PROJECT = """
[build-system]
requires = ["scikit-build-core"]
build-backend = "scikit_build_core.build"
[project]
name = "llama-cpp-python"
version = "9.9.9"
"""
SETUP = "open({trap!r}, 'w').close()"

FILES = {
    "LICENSE": "as you like",
    "convert_hf_to_gguf.py": "import conversion",
    "conversion/__init__.py": "",
    "conversion/base.py": "from gguf import x",
    "gguf-py/gguf/__init__.py": "x = 1",
    "models/templates/a.jinja": "{{ messages }}",
}
LEFT_OUT = {
    "src/llama.cpp": "int main() {}",
    "gguf-py/scripts/dump.py": "",
    "models/ggml-vocab-large.gguf": "GGUF",
    "convert_hf_to_gguf_update.py": "",
}


def make_index(folder: Path, trap: Path) -> Pins:
    """Fill a folder that pip finds files in; what these are pinned to. ``trap`` comes of code."""
    archive = folder / f"llama_cpp_python-{VERSION}.tar.gz"
    top = f"llama_cpp_python-{VERSION}"
    members = {
        f"{top}/PKG-INFO": f"Metadata-Version: 2.1\nName: {PACKAGE}\nVersion: {VERSION}\n",
        f"{top}/pyproject.toml": PROJECT,
        f"{top}/setup.py": SETUP.format(trap=str(trap)),
        **{f"{top}/{TREE}/{name}": text for name, text in (FILES | LEFT_OUT).items()},
    }
    write_archive(archive, members)
    wheel = folder / "transformers_for_tests-1.0-py3-none-any.whl"
    _write_wheel(wheel)
    packages = folder / "packages.txt"
    packages.write_text(
        f"# made by hand==1\n{OVERLAY}==1.0 \\\n    --hash=sha256:{sha256(wheel)}\n"
    )
    return Pins(PACKAGE, VERSION, sha256(archive), TREE, packages)


def write_archive(path: Path, members: dict[str, str], links: dict[str, str] | None = None) -> None:
    with tarfile.open(path, "w:gz") as tar:
        for name, text in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(text.encode())
            tar.addfile(info, io.BytesIO(text.encode()))
        for name, target in (links or {}).items():
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.SYMTYPE, target
            tar.addfile(info)


def _write_wheel(path: Path) -> None:
    info = "transformers_for_tests-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr("transformers_for_tests/__init__.py", "version = 1")
        wheel.writestr("transformers_for_tests/data.txt", "data")
        wheel.writestr(
            f"{info}/METADATA",
            # It asks for what nobody has: nothing that packages ask for is fetched.
            f"Metadata-Version: 2.1\nName: {OVERLAY}\nVersion: 1.0\nRequires-Dist: nowhere-to-be\n",
        )
        wheel.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{info}/RECORD", "")


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
