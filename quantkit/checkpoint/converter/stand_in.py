"""A build backend for pip that runs nothing: a source archive's PKG-INFO says what pip asks for.

Copied to where pip finds it under the name of the archive's own backend; never imported here.
"""

import email
from pathlib import Path


def prepare_metadata_for_build_wheel(folder: str, config_settings: object = None) -> str:  # noqa: ARG001
    """What the archive says of itself (PEP 517). pip calls it where the archive is unpacked."""
    said = Path("PKG-INFO").read_bytes()
    header = email.message_from_bytes(said)
    info = Path(folder) / f"{header['Name'].replace('-', '_')}-{header['Version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_bytes(said)
    return info.name
