"""Where bytes of an artifact lie."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Place:
    """A range of bytes in one of an artifact's files, which counts from 0."""

    file: int
    offset: int
    n_bytes: int
