"""`quantkit.verify`: whether this is what was built."""

from collections.abc import Callable
from pathlib import Path

from quantkit.api.reporter import Progress, reporter
from quantkit.publishing.verify import Verification
from quantkit.publishing.verify import verify as check


def verify(
    place: str | Path,
    *,
    key: str | Path | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> Verification:
    """Check sizes, sha256, manifest and signature of a folder or a repository on the Hub.

    Of a repository only small files are downloaded; of the others the Hub's own sizes and sha256
    are compared, which it checks when they are uploaded.

    Args:
        place: a build, a download, or a repository with or without ``@revision``.
        key: the public key (PEM) that the signature must be of.
        progress: told how far reading is, in bytes.

    Raises:
        PublishError: there is no manifest, or it cannot be used.
        VerificationError: the signature is not of the key, or there is none. Faults of files raise
            nothing: see `Verification.raise_if_failed`.
        CheckpointError: the repository cannot be reached.

    """
    meter = reporter(progress).open_meter("")
    try:
        return check(
            str(place),
            None if key is None else Path(key),
            lambda _path, done, total: meter.show("Reading", done, max(total, 1)),
        )
    finally:
        meter.close()
