"""Who encodes: the nodes of a Ray cluster, or this process."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from quantkit.api.options import Resources

if TYPE_CHECKING:
    from quantkit.building.executor import Workers


@contextmanager
def workers_of(
    resources: Resources, note: Callable[[str], None], *, publishes: bool
) -> "Iterator[Workers]":
    """Who encodes, inside the ``with`` block.

    Raises:
        MissingPackageError: Ray is not installed.
        ClusterError: there is no such cluster.

    """
    from quantkit.building.executor import ThisProcess

    if resources.cluster is None:
        yield ThisProcess()
        return
    from quantkit.building.cluster.connection import connect
    from quantkit.building.cluster.executor import ClusterWorkers

    cluster = connect(
        resources.cluster,
        local_jobs=resources.threads,
        jobs=resources.cluster_jobs,
        log=note,
    )
    with cluster as joined:
        yield ClusterWorkers(joined, needed_here=publishes)
