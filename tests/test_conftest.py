"""What tests/conftest.py promises."""

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
