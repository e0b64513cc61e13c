"""Builds on a cluster from the command line."""

from typing import TYPE_CHECKING

import typer

from quantkit.cli.output import note

if TYPE_CHECKING:
    from quantkit.building.executor import Workers


def join_cluster(
    context: typer.Context,
    address: str | None,
    jobs: int | None,
    *,
    threads: int,
    publishes: bool,
) -> "Workers":
    """Who encodes: the nodes of a cluster, until the command ends, or this process.

    Raises:
        MissingPackageError: Ray is not installed.
        ClusterError: there is no such cluster.

    """
    from quantkit.building.executor import ThisProcess

    if address is None:
        return ThisProcess()
    from quantkit.building.cluster.connection import connect
    from quantkit.building.cluster.executor import ClusterWorkers

    cluster = context.with_resource(connect(address, local_jobs=threads, jobs=jobs, log=note))
    return ClusterWorkers(cluster, needed_here=publishes)
