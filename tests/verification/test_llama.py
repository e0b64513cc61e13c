import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import quantkit
from quantkit.core.errors import NativeError
from quantkit.verification.llama import Run, run_worker
from tests.verification.hanging import HANG, Hanging

ROOT = Path(quantkit.__file__).parents[1]


# time: far more than anything here takes; where it is up, something else says when.
LIMIT = 600.0


def run(code: str, *, limit: float = LIMIT) -> Run:
    return run_worker({"task": "facts"}, timeout=limit, command=[sys.executable, "-c", code])


def test_the_real_worker_tells_about_llama_cpp() -> None:
    result = run_worker({"task": "facts"}, timeout=LIMIT)
    assert result.failure is None
    assert result.result is not None
    assert result.result["version"]
    assert "CPU" in result.result["system_info"]


@pytest.mark.parametrize("name", ["SIGSEGV", "SIGILL", "SIGABRT", "SIGBUS", "SIGFPE"])
def test_a_crash_is_named_with_what_it_was_doing(name: str) -> None:
    crashed = run(
        "import os, signal\n"
        'print(\'{"stage": "generating"}\', flush=True)\n'
        f"os.kill(os.getpid(), signal.{name})"
    )
    assert crashed.failure == f"llama.cpp crashed with {name} while generating."
    assert crashed.crashed
    assert crashed.result is None


@pytest.mark.parametrize(
    ("last_words", "reason"),
    [
        ("/build/ggml.c:12: GGML_ASSERT(a == b) failed", "GGML_ASSERT(a == b) failed"),
        (
            "terminate called after throwing an instance of 'std::out_of_range'\n"
            "  what():  _Map_base::at",
            "_Map_base::at",
        ),
        ("/build/ggml.c:12: fatal error", "fatal error"),
    ],
)
def test_an_abort_is_reported_with_its_reason(last_words: str, reason: str) -> None:
    aborted = run(
        f"import os, sys; sys.stderr.write({last_words!r}); sys.stderr.flush();os.abort()"
    )
    assert aborted.failure == f"llama.cpp crashed with SIGABRT while starting ({reason})."


def test_a_kill_from_outside_points_at_memory() -> None:
    killed = run("import os; os.kill(os.getpid(), 9)")
    assert "ran out of memory" in str(killed.failure)
    assert not killed.crashed


def test_an_exit_code_comes_with_the_last_line_of_the_log() -> None:
    ended = run("raise SystemExit('no such thing')")
    assert ended.failure == (
        "llama.cpp's process ended with code 1 while starting (no such thing)."
    )


def test_no_result_is_a_failure() -> None:
    assert run("pass").failure == ("llama.cpp's process ended without a result while starting.")


def test_half_a_line_and_noise_are_no_result() -> None:
    noisy = run("print('[1]'); print('x' * 100_000); print('{\"result\": {\"verd', end='')")
    assert noisy.result is None
    assert noisy.failure


HANGS_WITH_A_CHILD = f"""
{HANG}
import sys
print('{{"stage": "generating"}}', flush=True)
hang(sys.argv[1], children=1)
"""


def test_time_is_up_for_the_whole_process_group(tmp_path: Path) -> None:
    hanging = Hanging(tmp_path)
    command = [sys.executable, "-c", HANGS_WITH_A_CHILD, str(hanging.pipe)]
    with hanging.then_time_is_up(LIMIT):
        hung = run_worker({}, timeout=LIMIT, command=command)
    assert hung.failure == "llama.cpp timed out after 600 s while generating."
    assert not hung.crashed
    hanging.wait_for_the_end()


def test_no_time_at_all() -> None:
    """The limit itself, without anybody's help."""
    assert run("while True: pass", limit=0).failure == (
        "llama.cpp timed out after 0 s while starting."
    )


def test_ctrl_c_leaves_nothing_running(tmp_path: Path) -> None:
    hanging = Hanging(tmp_path)
    code = (
        "import sys\n"
        "from quantkit.verification.llama import run_worker\n"
        "run_worker({}, timeout=1e6, command=[sys.executable, '-c', *sys.argv[1:]])"  # time: no end
    )
    command = [sys.executable, "-c", code, HANGS_WITH_A_CHILD, str(hanging.pipe)]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE) as process:
        hanging.wait()
        process.send_signal(signal.SIGINT)
        _, err = process.communicate()
    assert b"KeyboardInterrupt" in err
    hanging.wait_for_the_end()


def test_the_users_settings_do_not_reach_llama_cpp(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMA_ARG_THREADS", "7")
    monkeypatch.setenv("PYTHONFAULTHANDLER", "1")
    seen = run("import json, os; print(json.dumps({'result': dict(os.environ)}))").result
    assert seen is not None
    assert not {"LLAMA_ARG_THREADS", "PYTHONFAULTHANDLER"} & seen.keys()
    assert seen["PATH"] == os.environ["PATH"]


def test_without_llama_cpp_python_the_advice_is_to_install_it() -> None:
    with pytest.raises(NativeError, match="pip install llama-cpp-python"):
        run(
            "import sys; sys.modules['llama_cpp'] = None\n"
            "from quantkit.verification import worker; worker.main()"
        )
