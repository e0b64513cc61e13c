"""``python -m tests.fuzz.server SOUND FIRST COUNT``: runs cases, each in a fork of this process.

What every case imports is imported here, once. A line on stdout is a case that went wrong, as JSON;
the last line is ``{"cases": N, "slowest": S, "seconds": T, "kinds": {...}}``: the processor time
of the slowest case, and of all.
"""

import contextlib
import gc
import io
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from functools import cache
from pathlib import Path
from typing import Any

from tests.fuzz.cases import ARTIFACT, RUNS, Case, calibration, export, make_case

CPU_SECONDS = 5
MEMORY = 10**9
_MAKE_SOUND = """
import sys
from pathlib import Path
from tests.fuzz.cases import make_sound
make_sound(Path(sys.argv[1]))
"""
HANGS_AFTER = 120  # seconds: nothing that waits for a pipe ends by itself
LONGEST_LINE = 600


def main(sound: Path, first: int, count: int) -> None:
    """Run the cases, those that need PyTorch last: a fork of a process without it costs half."""
    if not sound.exists():  # made elsewhere, since it needs PyTorch
        subprocess.run([sys.executable, "-c", _MAKE_SOUND, sound], check=True)
    kinds: Counter[str] = Counter()
    slowest = total = 0.0
    seeds: Sequence[int] = range(first, first + count)
    with tempfile.TemporaryDirectory(prefix="quantkit-fuzz-") as scratch:
        for heavy in (False, True):
            _prepare(sound, heavy=heavy)
            later = []
            for seed in seeds:
                folder = Path(scratch) / str(seed)
                folder.mkdir()
                case = make_case(seed, sound, folder)
                if case.heavy and not heavy:
                    later.append(seed)
                else:
                    faults, seconds, ending = run_forked(case, folder)
                    slowest, total = max(slowest, seconds), total + seconds
                    kinds[f"{case.what.partition(':')[0]}: {ending}"] += 1
                    for fault in faults:
                        _say({"seed": seed, "what": case.what, "fault": fault})
                shutil.rmtree(folder)
            seeds = later
    ending_counts = dict(sorted(kinds.items()))
    _say({"cases": count, "slowest": slowest, "seconds": total, "kinds": ending_counts})


def _say(document: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(document) + "\n")
    sys.stdout.flush()


def _prepare(sound: Path, *, heavy: bool) -> None:
    """Import what cases need, and run what is sound: no case does what the next would do again."""
    gc.unfreeze()
    if heavy:
        _import_heavy()
    else:
        _import_light()
    with (
        tempfile.TemporaryDirectory(prefix="quantkit-fuzz-") as scratch,
        contextlib.chdir(scratch),
    ):
        shutil.copytree(sound / "ended" / "imatrix", scratch, dirs_exist_ok=True)
        _warm_up(sound, heavy=heavy)
    # What is here stays as it is: no case looks at it for garbage, and so copies its pages.
    gc.collect()
    gc.freeze()


def _import_light() -> None:
    import gguf  # noqa: F401
    import tokenizers  # noqa: F401
    import typer.main
    import yaml  # noqa: F401

    import quantkit.cli.main
    import quantkit.fitting.subject
    import quantkit.publishing.measured
    import quantkit.publishing.verify
    import quantkit.verification.reference  # noqa: F401 - for the processes that are forked
    from quantkit.encodings.kernel import load_kernel

    load_kernel("ggml")
    # It makes all commands and their options anew whenever one is run, a third of a case's time.
    typer.main.get_command = cache(typer.main.get_command)


def _import_heavy() -> None:
    import bitsandbytes  # noqa: F401
    import torch

    import quantkit.formats.bnb.reader
    import quantkit.formats.gptq.reader  # noqa: F401

    torch.set_num_threads(1)


def _warm_up(sound: Path, *, heavy: bool) -> None:
    """Run what is sound, in the folder of a run over a text."""
    model, artifact = str(sound / "mistral" / "Model"), str(sound / "finished" / ARTIFACT)
    publish = ["publish", str(sound / "finished"), "--repo", "a/b", "--dry-run", "--force"]
    light = (
        ["inspect", model],
        ["inspect", artifact],
        ["build", model, "-q", "q4_k_m", "--dry-run"],
        ["build", model, "-q", "q8_0", "-o", "built", "--no-smoke", "--kernel", "ggml"],
        ["build", str(sound / "bpe" / "Model"), "-q", "q4_k_m", "--dry-run"],
        ["build", str(sound / "pth" / "Model"), "-q", "q8_0", "--dry-run"],
        ["verify", str(sound / "finished")],
        ["fit", artifact, "--gpu", "8GB"],
        publish,
        [*publish, "--card-only"],
    )
    texts = [[*calibration(kind), *["--overwrite"][: kind == RUNS[0]]] for kind in RUNS]
    said = io.StringIO()
    with redirect_stdout(said), redirect_stderr(said):
        for arguments in texts if heavy else light:
            code = _run(Case("warm", arguments), sound)
            assert code == 0, (arguments, said.getvalue()[-1000:])
    if heavy:
        export(sound / "gptq")
        export(sound / "bnb")


def run_forked(case: Case, folder: Path) -> tuple[list[str], float, str]:
    """Run a case; what went wrong, the seconds of processor time it took, and how it ended."""
    before = _listing(folder)
    said, refused = folder.with_suffix(".out"), folder.with_suffix(".err")
    temporary = folder.with_suffix(".tmp")
    temporary.mkdir()
    pid = os.fork()
    if pid == 0:
        os.environ["TMPDIR"] = os.environ["XDG_CACHE_HOME"] = str(temporary)
        _run_and_exit(case, folder, said, refused)
    _, status, usage = os.wait4(pid, 0)
    out, err = (file.read_bytes().decode(errors="replace") for file in (said, refused))
    said.unlink()
    refused.unlink()
    shutil.rmtree(temporary)
    seconds = usage.ru_utime + usage.ru_stime
    if os.WIFSIGNALED(status):
        name = signal.Signals(os.WTERMSIG(status)).name
        return [f"{name}: {(out + err)[-1500:]}"], seconds, name
    code = os.WEXITSTATUS(status)
    faults = judge(case, code, out, err)
    faults += _changes(before, _listing(folder))
    if code == 0 and (fault := case.look(folder)):
        faults.append(fault)
    return faults, seconds, str(code)


def judge(case: Case, code: int, out: str, err: str) -> list[str]:
    """What is wrong with how a command ended."""
    faults = []
    if code not in case.codes:
        faults.append(f"exit code {code}: {(out + err)[-1500:]}")
    lines = err.splitlines()
    if code and not (lines and lines[-1].startswith("Error: ")):
        faults.append(f"no sentence: {err[-300:]!r}")
    if code and not all(map(_may_come_before, lines[:-1])):
        faults.append(f"{len(lines)} lines: {err[-300:]!r}")
    for line in err.split("\n"):
        if not line.isprintable() or len(line) >= LONGEST_LINE:
            faults.append(f"a line of {len(line)} characters: {line[:300]!r}")
    if not out.replace("\n", "").isprintable():
        faults.append("stdout holds what does not print")
    return faults


def _may_come_before(line: str) -> bool:
    """Whether a line is what a command says before it begins: its size, remarks, what is lost."""
    known = (
        " parameters, ",
        " of an interrupted build ",
        " an interrupted run ",
        "Measuring ",
        "Exporting ",
        " is quantized itself",
        "Kept in ",
        "renders the chat template",
        "The chat template ",
    )
    return any(words in line for words in known)


def _run_and_exit(case: Case, folder: Path, said: Path, refused: Path) -> None:
    """Be the child."""
    code = 70
    try:
        os.chdir(folder)
        for number, file in ((1, said), (2, refused)):
            os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT), number)
        tempfile.tempdir = None
        resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
        resource.setrlimit(resource.RLIMIT_AS, (_address_space() + MEMORY,) * 2)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        signal.alarm(HANGS_AFTER)  # time: far away, for what hangs without the processor
        code = _run(case, folder)
    except BaseException:  # noqa: BLE001 - it is what the fuzzer looks for
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _run(case: Case, folder: Path) -> int:
    from quantkit.cli.main import main as command
    from quantkit.cli.output import fail
    from quantkit.core.errors import QuantkitError

    if case.call is not None:
        try:
            case.call(folder)
        except QuantkitError as error:
            fail(str(error))
            return error.exit_code
        return 0
    sys.argv = ["quantkit", *case.arguments]
    try:
        command()
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 0
    return 0


def _address_space() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    return pages * resource.getpagesize()


def _listing(folder: Path) -> dict[str, Any]:
    """Everything in a case's folder but the output: names, kinds, sizes and times."""
    found = {}
    for parent, folders, files in os.walk(folder):
        if Path(parent) == folder and "out" in folders:
            folders.remove("out")
        for name in (*folders, *files):
            path = Path(parent) / name
            status = path.lstat()
            times = () if path.is_dir() else (status.st_size, status.st_mtime_ns)
            found[str(path)] = (status.st_mode, *times)
    return found


def _changes(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    changed = [path for path in before | after if before.get(path) != after.get(path)]
    return [f"changed outside the output folder: {changed}"] if changed else []


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
