"""Build the pinned llama.cpp tools and the environment of its checkpoint converter.

``python vendor/build.py`` leaves everything that ``vendor/manifest.toml`` names in
``vendor/build/``. A finished build is kept until the manifest changes; anything less is removed
and built again. Only the standard library is used, and pip as it is configured on the machine.
"""

import contextlib
import fcntl
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
import tomllib
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NoReturn

HERE = Path(__file__).resolve().parent
MANIFEST = HERE / "manifest.toml"
BUILD = HERE / "build"
STAMP = BUILD / "stamp"
LOGS = BUILD / "logs"
BIN = BUILD / "bin"
SOURCE = BUILD / "llama.cpp"
VENV = BUILD / "venv"
TRANSFORMERS4 = BUILD / "transformers4"
TRANSFORMERS4_LIST = HERE / "transformers4.txt"
PYTHON = VENV / "bin" / "python"

LOG_TAIL_LINES = 25
SECONDS_BETWEEN_PROGRESS = 20.0


class BuildError(Exception):
    """The build cannot go on; the message says why and what to do next."""


class StepError(BuildError):
    """A command failed; ``log`` holds all that it printed."""

    def __init__(self, message: str, log: Path) -> None:
        super().__init__(message)
        self.log = log


def main() -> int:
    signal.signal(signal.SIGTERM, stop_like_ctrl_c)
    try:
        with MANIFEST.open("rb") as manifest:
            # One build at a time. The lock is on the manifest because vendor/build/ comes and goes.
            fcntl.flock(manifest, fcntl.LOCK_EX)
            build_unless_done(manifest.read())
            add_transformers4()
    except (BuildError, OSError, tarfile.TarError) as error:
        print(f"vendor: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("vendor: interrupted; the next run starts afresh.", file=sys.stderr)
        return 130
    return 0


def stop_like_ctrl_c(*_: object) -> NoReturn:
    raise KeyboardInterrupt


def build_unless_done(manifest_bytes: bytes) -> None:
    manifest = tomllib.loads(manifest_bytes.decode())
    stamp = hashlib.sha256(manifest_bytes).hexdigest()
    tools = [BIN / name for name in manifest["tools"]["names"]]
    if all(path.exists() for path in (STAMP, PYTHON, *tools)) and STAMP.read_text() == stamp:
        print(f"vendor: {BUILD} is up to date")
        return

    if not hasattr(tarfile, "data_filter"):
        raise BuildError("this needs Python 3.11.4 or newer, whose tarfile unpacks safely.")
    started = time.monotonic()
    if BUILD.exists():
        shutil.rmtree(BUILD)
    LOGS.mkdir(parents=True)

    source = manifest["source"]
    say(f"making an environment with Python {sys.version.split()[0]}")
    run("venv", [sys.executable, "-m", "venv", VENV])
    say(f"fetching {source['package']} {source['version']}")
    archive = fetch(source)
    say(f"unpacking {source['tree']}")
    unpack(archive, source["tree"], SOURCE)
    shutil.rmtree(archive.parent)
    say("installing what the converter needs")
    run("converter", [*pip("install"), *manifest["converter"]["requirements"]])
    say(f"building {', '.join(manifest['tools']['names'])} (some minutes)")
    build_tools(manifest["tools"], manifest["fallback"])

    STAMP.write_text(stamp)
    minutes, seconds = divmod(round(time.monotonic() - started), 60)
    say(f"done in {minutes} min {seconds} s: {BUILD}")


def add_transformers4() -> None:
    """Install what lets the converter's transformers 4 load bitsandbytes, beside its environment.

    Programs that want it put the folder on PYTHONPATH; the converter never sees it.
    """
    wanted = TRANSFORMERS4_LIST.read_text()
    stamp = TRANSFORMERS4 / "stamp"
    if stamp.exists() and stamp.read_text() == wanted:
        return
    shutil.rmtree(TRANSFORMERS4, ignore_errors=True)
    say("installing what transformers 4 needs to load bitsandbytes")
    into = ["--no-deps", "--target", str(TRANSFORMERS4), "--requirement", str(TRANSFORMERS4_LIST)]
    run("transformers4", [*pip("install"), *into])
    stamp.write_text(wanted)


def fetch(source: dict[str, str]) -> Path:
    """Download the pinned source archive and return its path."""
    folder = BUILD / "download"
    folder.mkdir()
    requirement = folder / "requirement.txt"
    package, version, sha256 = source["package"], source["version"], source["sha256"]
    # With its hash in a requirements file pip checks the archive before it runs any of its code
    # (pip asks even a source archive that it only downloads for metadata).
    requirement.write_text(f"{package}=={version} --hash=sha256:{sha256}\n")
    # ":all:" would also build the archive's build requirements from source, CMake among them.
    command = [*pip("download"), "--no-deps", "--no-binary", package]
    try:
        run("download", [*command, "--dest", folder, "--requirement", requirement])
    except StepError as error:
        if "DO NOT MATCH THE HASHES" in error.log.read_text(errors="replace"):
            refuse(source)
        raise
    archives = list(folder.glob("*.tar.gz"))
    if len(archives) != 1:
        raise BuildError(f"pip left no source archive of {package} {version}; see {LOGS}.")
    with archives[0].open("rb") as archive:
        # A cached or configured copy counts as little as any other: this is the pin that matters.
        if hashlib.file_digest(archive, "sha256").hexdigest() != sha256:
            refuse(source)
    return archives[0]


def refuse(source: dict[str, str]) -> NoReturn:
    shutil.rmtree(BUILD)
    raise BuildError(
        f"the source archive of {source['package']} {source['version']} does not have the sha256 "
        f"that {MANIFEST} pins, so nothing was built; find out why before changing the pin."
    )


def unpack(archive: Path, tree: str, destination: Path) -> None:
    """Unpack only the folder ``tree`` of the archive, whose members all lie in one top folder."""
    with tarfile.open(archive) as tar:
        wanted = []
        for member in tar:
            parts = PurePosixPath(member.name).parts[1:]
            if PurePosixPath(*parts).is_relative_to(tree):
                name = str(PurePosixPath(*parts).relative_to(tree))
                wanted.append(member.replace(name=name, deep=False))
        if not wanted:
            raise BuildError(f"{archive.name} has no folder {tree}; check `tree` in {MANIFEST}.")
        # The filter refuses links and names that lead out of the destination.
        tar.extractall(destination, members=wanted, filter="data")


def build_tools(tools: dict[str, Any], fallback: dict[str, str]) -> None:
    """Compile the tools with the manifest's CMake settings; keep programs and libraries."""
    cmake = shutil.which("cmake")
    ninja = shutil.which("ninja")
    if cmake is None:
        run("cmake", [*pip("install"), fallback["cmake"]])
        cmake = str(VENV / "bin" / "cmake")
    if ninja is None and shutil.which("make") is None:
        run("ninja", [*pip("install"), fallback["ninja"]])
        ninja = str(VENV / "bin" / "ninja")
    generator = ["-G", "Unix Makefiles"]
    if ninja is not None:
        generator = ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"]
    settings = [f"-D{name}={value}" for name, value in tools["cmake"].items()]
    objects = BUILD / "objects"
    run("configure", [cmake, "-S", SOURCE, "-B", objects, *generator, *settings])
    parallel = ["--parallel", str(os.cpu_count() or 1)]
    run("build", [cmake, "--build", objects, *parallel, "--target", *tools["names"]])
    shutil.move(objects / "bin", BIN)
    shutil.rmtree(objects)


def pip(verb: str) -> list[str | Path]:
    return [PYTHON, "-m", "pip", verb, "--disable-pip-version-check", "--progress-bar", "off"]


def run(step: str, command: Sequence[str | Path]) -> None:
    """Run a command into ``logs/<step>.log``, showing the log's newest line now and then.

    Raises StepError with the end of the log if the command fails.
    """
    log = LOGS / f"{step}.log"
    # A user's compiler flags must not reach a build that others compare bytes with.
    environment = {k: v for k, v in os.environ.items() if k not in ("CFLAGS", "CXXFLAGS")}
    with log.open("w") as out:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            env=environment,
            process_group=0,
        )
    try:
        while (status := finished(process)) is None:
            print(f"  {newest_lines(log, 1).strip():.100}", flush=True)
    except BaseException:
        # All of the group, and not SIGKILL: ninja must hear of it, for only ninja stops compilers.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        process.wait()
        raise
    if status != 0:
        tail = newest_lines(log, LOG_TAIL_LINES)
        raise StepError(f"{step} failed with status {status}; its log is {log}\n{tail}", log)


def finished(process: subprocess.Popen[bytes]) -> int | None:
    """Return the exit status, or None after ``SECONDS_BETWEEN_PROGRESS``."""
    try:
        return process.wait(SECONDS_BETWEEN_PROGRESS)
    except subprocess.TimeoutExpired:
        return None


def newest_lines(log: Path, count: int) -> str:
    lines = log.read_text(errors="replace").splitlines()
    return "\n".join(f"  | {line}" for line in lines[-count:])


def say(message: str) -> None:
    print(f"vendor: {message}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
