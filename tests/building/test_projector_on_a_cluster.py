"""A model with a vision part on a Ray cluster, which encodes the model and leaves the part here."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.architectures.ggufs import stored_checkpoints
from tests.building.builds import artifacts_in, timeless_manifest_of

pytestmark = pytest.mark.search


def test_the_same_two_files(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    source = stored_checkpoints(tmp_path_factory, ["smolvlm"])["smolvlm"]
    command = [sys.executable, "-m", "quantkit", "build", str(source), "-q", "q8_0", "--no-smoke"]
    for out, options in (("threads", ()), ("cluster", ("--cluster", "local", "--jobs", "1"))):
        built = subprocess.run(
            [*command, "-o", str(tmp_path / out), *options],
            env=os.environ | {"RAY_AUTH_MODE": "disabled"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert built.returncode == 0, built.stderr

    threads, cluster = tmp_path / "threads", tmp_path / "cluster"
    assert len(artifacts_in(threads)) == 2
    assert artifacts_in(cluster) == artifacts_in(threads)
    assert timeless_manifest_of(cluster) == timeless_manifest_of(threads)
