"""What tests/conftest.py promises."""

import os
import subprocess
import sys
from pathlib import Path


def test_llama_cpp_leaves_no_file_open() -> None:
    """The end of a test process that imported it says nothing."""
    code = (
        "import llama_cpp; from tests.conftest import close_llama_cpps_files; "
        "close_llama_cpps_files()"
    )
    ended = subprocess.run(
        [sys.executable, "-W", "error::ResourceWarning", "-c", code],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")


def test_settings_of_the_users_terminal_change_nothing() -> None:
    code = "import tests.conftest; from quantkit.cli.output import console; print(console)"
    plain, set_ = (
        subprocess.run(
            [sys.executable, "-c", code],
            cwd=Path(__file__).parents[1],
            env=os.environ | settings,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for settings in ({}, {"COLUMNS": "31", "FORCE_COLOR": "1", "TTY_COMPATIBLE": "1"})
    )
    assert plain == set_ == "<console width=100000 None>\n"
