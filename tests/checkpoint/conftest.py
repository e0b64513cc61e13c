import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def plain_users_folder() -> Iterator[Path]:
    """A folder, with file permissions in force for whoever runs the test, root too."""
    uid = os.geteuid()
    # Not tmp_path, which lies in a folder that is closed to others.
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if uid == 0:
            os.chown(folder, 65534, -1)
            os.seteuid(65534)
        try:
            yield folder
        finally:
            if uid == 0:
                os.seteuid(0)
