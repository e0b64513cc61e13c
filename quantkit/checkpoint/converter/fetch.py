"""The pinned files from the package index, by pip as it is configured on the machine.

pip knows the user's index, mirrors, proxies, certificates, passwords and wheel folders, which a
reader of our own would get wrong somewhere. What it fetches it compares with the pinned hash before
anything looks into it.

Of a source archive that it only downloads, pip still wants to know name and version, and asks the
archive's build backend: it would install that and run it. Here it finds a stand-in of that name, so
nothing but pip runs.
"""

import hashlib
import os
import subprocess
import sys
import tarfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from quantkit.checkpoint.converter.pins import Pins
from quantkit.core.errors import ConverterError
from quantkit.core.files import open_file, read_file
from quantkit.core.printable import one_line
from quantkit.core.writing import write_file

# What of llama.cpp is kept: the converter, its gguf, their licenses, and what the converter reads
# from beside itself: templates, and vocabularies of models that come without one.
KEPT = (
    "LICENSE",
    "convert_hf_to_gguf.py",
    "conversion",
    "gguf-py/LICENSE",
    "gguf-py/gguf",
    "models/templates",
    "models/ggml-vocab-gpt-neox.gguf",
    "models/ggml-vocab-llama-spm.gguf",
)

_BACKEND = "scikit_build_core/build.py"  # the one that the pinned archive's pyproject.toml names
_STAND_IN = Path(__file__).with_name("stand_in.py")
# Over the user's own, which would refuse what is asked for: everything is pinned already, and goes
# into a folder of ours.
_SETTINGS = {"PIP_CONSTRAINT": os.devnull, "PIP_USER": "0", "PIP_REQUIRE_VIRTUALENV": "0"}

_FIX = (
    "connect to the package index that pip is set to, or see docs/converter.md for a machine "
    "without network"
)


def fetch_tree(pins: Pins, into: Path, scratch: Path) -> None:
    """Fetch the pinned source archive and unpack of it what the converter needs.

    Args:
        pins: which archive.
        into: the folder that becomes the tree: ``conversion/`` lies in it afterwards.
        scratch: an empty folder for what is needed meanwhile.

    Raises:
        ConverterError: it is not to be had, or not what is pinned.
        OSError: a folder cannot be written.

    """
    requirement = scratch / "requirement.txt"
    line = f"{pins.package}=={pins.version} --hash=sha256:{pins.sha256}\n"
    write_file(requirement, line.encode())
    stand_in = scratch / "stand-in" / _BACKEND
    stand_in.parent.mkdir(parents=True)
    write_file(stand_in.with_name("__init__.py"), b"")
    write_file(stand_in, read_file(_STAND_IN))
    download = scratch / "download"
    paths = [str(stand_in.parent.parent), os.environ.get("PYTHONPATH", "")]
    _run_pip(
        ["download", "--no-build-isolation", "--no-binary", pins.package, "--dest", str(download)],
        requirement,
        f"The source archive of {pins.package} {pins.version}",
        scratch,
        {"PYTHONPATH": os.pathsep.join(filter(None, paths))},
    )
    archives = list(download.glob("*.tar.gz"))
    if len(archives) != 1:
        raise ConverterError(f"pip left no source archive of {pins.package} {pins.version}.")
    with open_file(archives[0], error=ConverterError) as archive:
        # A cached or configured copy counts as little as any other: this is the pin that matters.
        if hashlib.file_digest(archive, "sha256").hexdigest() != pins.sha256:
            raise ConverterError(_other_bytes(f"The archive of {pins.package} {pins.version}"))
    unpack(archives[0], pins.tree, into)


def fetch_packages(pins: Pins, into: Path, scratch: Path) -> None:
    """Install the pinned packages, and nothing that they ask for, into a folder.

    Raises:
        ConverterError: they are not to be had, or not what is pinned.
        OSError: a folder cannot be written.

    """
    _run_pip(
        ["install", "--no-compile", "--only-binary", ":all:", "--target", str(into)],
        pins.packages,
        "The transformers of llama.cpp's converter",
        scratch,
        {},
    )


def unpack(archive: Path, tree: str, into: Path) -> None:
    """Unpack what is `KEPT` of the folder ``tree`` of an archive, whose members lie in one folder.

    Raises:
        ConverterError: the archive cannot be read, or has no converter.

    """
    if not hasattr(tarfile, "data_filter"):
        raise ConverterError(
            "llama.cpp's converter is unpacked with Python 3.11.4 or newer; this is "
            f"{sys.version.split()[0]}, so install a newer one."
        )
    try:
        with tarfile.open(archive) as tar:
            wanted = []
            for member in tar:
                path = PurePosixPath(*PurePosixPath(member.name).parts[1:])
                if not path.is_relative_to(tree):
                    continue
                inner = path.relative_to(tree)
                if any(inner.is_relative_to(kept) for kept in KEPT):
                    wanted.append(member.replace(name=str(inner), deep=False))
            # The filter refuses links and names that lead out of the folder.
            tar.extractall(into, members=wanted, filter="data")
    except (tarfile.TarError, EOFError) as error:
        raise ConverterError(
            f"{archive.name} cannot be unpacked ({one_line(str(error), 120)}); remove it from "
            "where pip has it and try again."
        ) from None
    if not (into / "conversion" / "base.py").is_file():
        raise ConverterError(
            f"{archive.name} has no {tree}/conversion/base.py; raise the pin only to a version "
            "that has one."
        )


def _run_pip(
    arguments: list[str],
    requirements: Path,
    what: str,
    scratch: Path,
    environment: Mapping[str, str],
) -> None:
    """Run pip on exactly what is required, all of whose temporary files lie in ``scratch``.

    Raises:
        ConverterError: it fails; the sentence begins with ``what`` it was to fetch.

    """
    # Not the current folder's pip (-P), nor a temporary folder in memory: this takes 300 MB.
    command = [sys.executable, "-P", "-m", "pip", "--disable-pip-version-check", "--no-input"]
    done = subprocess.run(
        [*command, *arguments, "--no-deps", "--require-hashes", "--requirement", str(requirements)],
        cwd=scratch,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env={**os.environ, **_SETTINGS, "TMPDIR": str(scratch), **environment},
        check=False,
    )
    if done.returncode == 0:
        return
    if "DO NOT MATCH THE HASHES" in done.stdout:
        raise ConverterError(_other_bytes(what))
    raise ConverterError(f"{what} cannot be fetched ({_reason(done.stdout)}); {_FIX}.")


def _other_bytes(what: str) -> str:
    return (
        f"{what} from the package index that pip is set to does not have the sha256 that quantkit "
        "pins, so nothing of it is used; find out where it comes from (pip config list)."
    )


def _reason(output: str) -> str:
    """Why pip failed: that it could not connect, else the last error that it printed."""
    if "connection broken by" in output:
        return "no connection to the package index"
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line.partition(":")[2].strip() for line in lines if line.startswith("ERROR:")]
    return one_line(next(iter(reversed(errors)), lines[-1] if lines else "no word from pip"), 200)
