"""``compare.json``: what a comparison is kept as, read back, for whoever needs its figures.

What an earlier version did not write has a default.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from quantkit.core.documents import read_object, to_type
from quantkit.core.errors import FileError
from quantkit.core.files import Raise
from quantkit.verification.divergence import PERCENTILES, Measures
from quantkit.verification.embeddings import Cosines

FILE = "compare.json"
"""What a comparison is kept as, in the folder of the build."""


@dataclass(frozen=True, slots=True)
class Speed:
    """How a model ran while it was measured, on the plain CPU path."""

    load_seconds: float
    prompt_tokens_per_second: float
    generation_tokens_per_second: float | None = None
    resident_bytes: int | None = None


class KeptVerdict(msgspec.Struct, frozen=True):
    """What `quality.Verdict` says; its limits are for people."""

    ok: bool
    reason: str
    limits: dict[str, Any] | None = None
    judged: bool = True


class KeptResult(msgspec.Struct, frozen=True, kw_only=True):
    """One artifact: its figures, or why there are none."""

    name: str
    file: str = ""
    quant: str | None = None
    bytes: int
    run: str = ""
    is_reference: bool
    measures: Measures | None = None
    cosines: Cosines | None = None
    speed: Speed | None = None
    verdict: KeptVerdict


class KeptComparison(msgspec.Struct, frozen=True, kw_only=True):
    """All artifacts against one reference, over one text."""

    reference: str
    reference_quant: str | None = None
    reference_is_quantized: bool = False
    text: str
    text_sha256: str
    context: int
    windows: int
    threads: int
    gpu_layers: int = 0
    kld_percentiles: tuple[float, ...] = PERCENTILES
    artifacts: list[KeptResult]


def read_kept(file: Path, *, error: Raise = FileError) -> KeptComparison:
    """What ``quantkit compare --json`` printed.

    Raises:
        error: the file is not that, or of a version that printed something else.

    """
    return to_type(
        read_object(file, error=error, fix="write it with quantkit compare --json"),
        KeptComparison,
        f"{file} is not what this version of quantkit compare --json prints: it",
        error=error,
        fix="run it again",
    )
