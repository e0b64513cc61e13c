"""`quantkit.publish`: a finished build as a repository on the Hub."""

from collections.abc import Callable
from pathlib import Path

from quantkit.api.checked import checked
from quantkit.api.reporter import Progress, reporter
from quantkit.core.errors import PlanError, PublishError
from quantkit.publishing import release as releases
from quantkit.publishing.earlier import find_earlier
from quantkit.publishing.release import Published, PublishOptions

_AS_IT_IS = PublishOptions()


def publish(
    folder: str | Path,
    repo: str,
    options: PublishOptions = _AS_IT_IS,
    *,
    private: bool = False,
    message: str | None = None,
    card_only: bool = False,
    dry_run: bool = False,
    progress: Callable[[Progress], None] | None = None,
    note: Callable[[str], None] | None = None,
) -> Published:
    """Publish a build on the Hugging Face Hub: card, checksums and all, the card last.

    Every file is read and compared with the manifest first. Stopped or killed, the same call goes
    on where it was; what the Hub has already is not sent again.

    Args:
        folder: what `quantkit.build` wrote.
        repo: where to publish, ``namespace/name``.
        options: what goes there, and what its card says.
        private: make the repository private, if it must be made.
        message: of the commits.
        card_only: send the card and its picture alone; the files must be there.
        dry_run: send nothing, and look at sizes alone.
        progress: told how far checking and sending are, in bytes.
        note: told what the card lacks.

    Raises:
        PlanError: an option would do nothing.
        PublishError: it must not be published, or not like this; the message says what to mend.
        UploadError: the Hub does not take it, or does not hold it afterwards.
        CheckpointError, GGUFError, OutputError: something that it needs cannot be read.

    """
    options = checked(options, PublishOptions)
    _refuse_idle(options, private=private, card_only=card_only)
    if message is not None and not message.strip():
        raise PublishError("--message is empty; say what this is, or leave it out.")
    tell = reporter(progress, note)
    meter = tell.open_meter("")
    try:
        release = releases.prepare(
            Path(folder),
            repo,
            options,
            hashed=not (dry_run or card_only),
            look=(lambda _repo_id: None) if dry_run else find_earlier,
            report=lambda _what, done, total: meter.show("Checking", done, total),
        )
        for remark in release.notes:
            tell.note(remark)
        if dry_run:
            return Published(release, (), dry_run=True)
        return releases.publish(
            release,
            private=private,
            card_only=card_only,
            message=message,
            report=lambda path, done, total: meter.show(f"Sending {path}", done, total),
        )
    finally:
        meter.close()


def _refuse_idle(options: PublishOptions, *, private: bool, card_only: bool) -> None:
    idle = (
        ("--sign", options.key is not None, "sends no signature"),
        ("--private", private, "makes no repository"),
    )
    for option, given, why in idle:
        if card_only and given:
            raise PlanError(
                f"{option} does nothing beside --card-only, which {why}; leave one of them out."
            )
