"""Damaged, hostile and unlucky files: one line, exit code 2, and nothing else, whatever they hold.

``pytest -m fuzz`` runs 20,000 cases. A seed is a case: ``python -m tests.fuzz.server SOUND SEED 1``
runs one again, with ``SOUND`` a folder that is made where there is none.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.fuzz.cases import make_case, make_sound
from tests.fuzz.server import CPU_SECONDS, judge

_ONE_THREAD = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
_COMMAND = (
    "import resource, sys; from quantkit.cli.main import main; "
    f"resource.setrlimit(resource.RLIMIT_CPU, ({4 * CPU_SECONDS},) * 2); main()"
)
_THROUGH_THE_COMMAND_LINE = 12
_MANY = 20_000
_BEYOND = 10**6  # the first seed of the many, which the others are not among


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fuzz") / "sound"
    make_sound(folder)
    return folder


def _run_cases(sound: Path, first: int, count: int) -> dict[str, Any]:
    """Run cases in a server, and fail if one of them went wrong; what it says at the end."""
    said = sound.with_name(f"from-{first}")  # an hour of it can be watched
    with said.open("w") as file:
        done = subprocess.run(
            [sys.executable, "-m", "tests.fuzz.server", str(sound), str(first), str(count)],
            stdout=file,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | _ONE_THREAD,
            check=False,
        )
    assert done.returncode == 0, done.stderr[-3000:]
    *faults, end = map(json.loads, said.read_text().splitlines())
    assert not faults, "\n".join(map(str, faults[:20]))
    assert end["cases"] == count
    found: dict[str, Any] = end
    return found


@pytest.mark.parametrize(
    ("first", "count"), [(0, 200), pytest.param(200, 400, marks=pytest.mark.native)]
)
def test_the_first_cases(sound: Path, first: int, count: int) -> None:
    end = _run_cases(sound, first, count)
    refused = sum(n for kind, n in end["kinds"].items() if kind.endswith(": 2"))
    assert 0.4 * count < refused < count  # neither all nor none


@pytest.mark.fuzz
@pytest.mark.timeout(4 * 3600)  # time: 20 minutes of one processor, which may be busy
def test_twenty_thousand_cases(sound: Path) -> None:
    _run_cases(sound, _BEYOND, _MANY)


def test_the_first_cases_through_the_command_line(sound: Path, tmp_path: Path) -> None:
    """Some of them again, each in a process of its own: the server judges as a shell."""
    left, seed = _THROUGH_THE_COMMAND_LINE, 0
    while left:
        folder = tmp_path / str(seed)
        folder.mkdir()
        case = make_case(seed, sound, folder)
        seed += 1
        if not case.arguments:
            continue
        left -= 1
        done = subprocess.run(
            [sys.executable, "-P", "-c", _COMMAND, *case.arguments],
            cwd=folder,
            capture_output=True,
            env=os.environ | _ONE_THREAD,
            check=False,
        )
        out, err = (text.decode(errors="replace") for text in (done.stdout, done.stderr))
        assert judge(case, done.returncode, out, err) == [], f"seed {seed - 1}: {case.what}"
