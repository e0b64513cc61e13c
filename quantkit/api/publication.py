"""Where what is built is published, and when."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from quantkit.api.options import PublicationOptions
from quantkit.api.reporter import Reporter
from quantkit.core.errors import PlanError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from quantkit.building.shipping import Shipping
    from quantkit.building.work import Work
    from quantkit.checkpoint.checkpoint import Checkpoint
    from quantkit.planning.quants import Quant
    from quantkit.publishing.release import PublishOptions


@dataclass(slots=True)
class Publication:
    """A repository to publish a build in, at its end or file by file while it runs.

    ``checkpoint`` is the folder that it is built from, if it is one.
    """

    repo_id: str
    options: PublicationOptions
    checkpoint: str | None
    shipping: "Shipping | None" = None

    @property
    def wishes(self) -> "PublishOptions":
        """As the publisher takes them."""
        from quantkit.publishing.release import PublishOptions

        return PublishOptions(
            checkpoint=self.checkpoint,
            license=self.options.license_,
            base_model=self.options.base_model,
        )

    def begin(self, work: "Work", projector: "Work | None" = None) -> "Shipping | None":
        """Check that it may be published, before the first weight is read.

        With it goes its vision or audio part, if it has one.

        Where finished files go meanwhile; None where they stay until all are.
        """
        from quantkit.publishing.streamed import begin

        if any(layout.plan.quant.format != "gguf" for layout in work.layouts):
            self.refuse_folders(work.checkpoint, [layout.name for layout in work.layouts])
            return None  # their headers are not known to the byte yet
        parts = [work] if projector is None else [work, projector]
        shipping = begin(parts, self.repo_id, self.wishes, private=self.options.private)
        if self.options.delete_published:
            self.shipping = replace(shipping, max_disk=self.options.max_disk)
        return self.shipping

    def refuse_folders(self, checkpoint: "Checkpoint", names: "Sequence[str]") -> None:
        """Check of artifacts in folders what can be told before they are built."""
        from quantkit.publishing.streamed import refuse_folders

        refuse_folders(checkpoint, names, self.repo_id, self.wishes, private=self.options.private)

    def end(self, folder: Path, tell: Reporter) -> None:
        """Send what was not sent yet, the card last, and say where it is."""
        from quantkit.publishing import release, streamed

        meter = tell.open_meter("")

        def sending(path: str, done: int, total: int) -> None:
            meter.show(f"Sending {path}", done, total)

        def checking(_what: str, done: int, total: int) -> None:
            meter.show("Checking", done, total)

        try:
            if self.shipping is not None:
                streamed.end(folder, self.shipping, self.wishes, report=sending, note=tell.note)
            else:
                ready = release.prepare(folder, self.repo_id, self.wishes, report=checking)
                for remark in ready.notes:
                    tell.note(remark)
                release.publish(ready, private=self.options.private, report=sending)
        finally:
            meter.close()
        tell.note(f"Published in {self.repo_id}.")


def plan_publication(
    options: PublicationOptions, checkpoint: str, quants: "Sequence[Quant]", *, smoke: bool
) -> Publication | None:
    """Where a build is to be published; None where it is not.

    Raises:
        PlanError: what is asked for cannot be published like that.
        PublishError: the repository's name breaks the Hub's rules.

    """
    if options.publish is None:
        return None
    from quantkit.publishing.layout import check_repo_id

    check_repo_id(options.publish)
    formats = {quant.format for quant in quants}
    if options.delete_published and formats != {"gguf"}:
        raise PlanError(
            "--delete-published is for GGUF quants; build the others without it, and publish them "
            "with quantkit publish."
        )
    if len(formats) > 1:
        raise PlanError(
            f"A repository holds one format, and these are {', '.join(sorted(formats))}; build "
            "and publish one after the other."
        )
    if not (smoke or options.delete_published):
        raise PlanError(
            "--publish sends nothing that was not run; leave out --no-smoke, or use quantkit "
            "publish --force afterwards."
        )
    # What came from the Hub, the manifest knows.
    local = checkpoint if Path(checkpoint).exists() else None
    return Publication(options.publish, options, local)
