"""Builds on a cluster from the command line."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from quantkit.cli.output import note
from quantkit.core.errors import PlanError

if TYPE_CHECKING:
    from quantkit.build.executor import Assignment, Executor


def join_cluster(
    context: typer.Context,
    address: str | None,
    jobs: int | None,
    *,
    threads: int,
    keep_source: Path | None,
) -> "Callable[[Assignment], Executor]":
    """What encodes: the nodes of a cluster, until the command ends, or threads where none is named.

    Raises:
        PlanError: options that do not go together.
        MissingPackageError: Ray is not installed.
        ClusterError: there is no such cluster.

    """
    from quantkit.build.executor import Threads

    if address is None:
        if jobs is not None:
            raise PlanError("--cluster-jobs needs --cluster; threads of this machine are --jobs.")
        return Threads
    if keep_source is not None:
        raise PlanError(
            "--keep-source stores what this machine reads, and with --cluster the nodes read; "
            "leave one of them out."
        )
    from quantkit.build.cluster.connection import connect
    from quantkit.build.cluster.executor import ClusterExecutor

    cluster = context.with_resource(connect(address, local_jobs=threads, jobs=jobs, log=note))
    return partial(ClusterExecutor, cluster)
