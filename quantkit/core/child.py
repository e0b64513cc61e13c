"""What a process of ours inherits from the user's."""

import os
from pathlib import Path

# The rest of the environment (LLAMA_ARG_*, GGML_*, OMP_*) could change what a child does, and a
# verdict should not depend on it.
_INHERITED = (
    "PATH",
    "HOME",
    "TMPDIR",
    "LD_LIBRARY_PATH",
    "DYLD_LIBRARY_PATH",
    "PYTHONPATH",
    "SYSTEMROOT",
)


def child_environment() -> dict[str, str]:
    """The environment of a child that runs ``python -P -m quantkit...`` anywhere."""
    environment = {name: os.environ[name] for name in _INHERITED if name in os.environ}
    # The child starts elsewhere, so it is told where this very quantkit lies.
    paths = [str(Path(__file__).resolve().parents[2]), environment.get("PYTHONPATH", "")]
    return {**environment, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
