"""Calling functions on the nodes of a cluster, and telling their failures from the cluster's."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cache
from typing import Any

from quantkit.building.units import UNIT_ELEMENTS
from quantkit.core.errors import ClusterError
from quantkit.core.packages import DISTRIBUTION
from quantkit.core.units import format_size
from quantkit.core.version import __version__

SLAB_MEMORY = UNIT_ELEMENTS * 4 * 4
"""One slab as bytes, twice as float32, and encoded."""

TASK_MEMORY = 300 * 2**20 + SLAB_MEMORY  # with a process that has numba's kernels
# How long all nodes may take to answer; some have kernels to compile first.
_ANSWER_SECONDS = 300.0
# Ray says so of a function whose module is not there; its last line says which.
_NOT_IMPORTED = "The remote function failed to import on the worker."


class Lost(Exception):  # noqa: N818 - what happened; it never leaves this package
    """A call came to nothing through no fault of its own: its process or its node is gone."""


def live_nodes() -> list[dict[str, Any]]:
    """The nodes that have processors, as Ray describes them."""
    import ray

    nodes = ray.nodes()  # type: ignore[no-untyped-call] # Ray is half typed
    return [node for node in nodes if node["Alive"] and node["Resources"].get("CPU", 0) >= 1]


def live_ids() -> list[str]:
    """The ids of these nodes."""
    return [node["NodeID"] for node in live_nodes()]


def count_processors() -> int:
    """The processors of the nodes that have memory for a task.

    Raises:
        ClusterError: there are none.

    """
    resources = [node["Resources"] for node in live_nodes()]
    found = int(sum(node["CPU"] for node in resources if node.get("memory", 0) >= TASK_MEMORY))
    if not found:
        raise ClusterError(
            f"No node of the cluster has a processor and {format_size(TASK_MEMORY)} of memory for "
            "a slab; start one with more (`ray start --num-cpus --memory`)."
        )
    return found


def call(function: Callable[..., Any], *arguments: Any, node: str | None = None) -> Any:
    """Begin a call that takes a processor, on any node or on that with an id; the task.

    Ray's own retries are off: they would not say what was done twice.
    """
    return _remote(function, 1, node).remote(*arguments)


def ask(
    nodes: Sequence[str], function: Callable[..., Any], *arguments: Any
) -> Iterator[tuple[str, Any]]:
    """Call a function that takes next to nothing on several nodes at once; what each returns.

    The calls begin at once, and are waited for when the first answer is asked for. Nodes that are
    lost meanwhile are left out. Not for what is done often: Ray ends processes that are more than
    a node's processors, and starts them again.

    Raises:
        ClusterError: one does not answer.

    """
    asked = {_remote(function, 0, node).remote(*arguments): node for node in nodes}
    return _answers(asked)


def _answers(asked: Mapping[Any, str]) -> Iterator[tuple[str, Any]]:
    import ray

    _, silent = ray.wait(list(asked), num_returns=len(asked), timeout=_ANSWER_SECONDS)
    if silent:
        raise ClusterError(
            f"Node {asked[silent[0]]} of the cluster does not answer within "
            f"{_ANSWER_SECONDS:.0f} s; see `ray status`, and correct or remove it."
        )
    for task, node in asked.items():
        with suppress(Lost):
            yield node, result(task)


def result(task: Any) -> Any:
    """What a call returned; what it raised is raised here.

    Raises:
        Lost: its process or node is gone.
        ClusterError: Ray failed otherwise.

    """
    import ray
    from ray import exceptions

    try:
        return ray.get(task)
    except exceptions.RayTaskError as error:
        said = str(error.cause).strip()
        if isinstance(error.cause, ModuleNotFoundError) or said.startswith(_NOT_IMPORTED):
            raise ClusterError(
                f"Node {_address(error)} cannot run quantkit ({said.splitlines()[-1]}); install "
                f"{DISTRIBUTION}[ray] {__version__} in the Python that Ray runs in there."
            ) from error
        if isinstance(error.cause, exceptions.RayError):
            raise _failed(error.cause) from error
        raise error.cause from error
    except exceptions.NodeDiedError as error:
        raise Lost(f"its node was lost ({_address(error)})") from error
    except exceptions.OutOfMemoryError as error:
        raise Lost("its process was killed for want of memory") from error
    except exceptions.TaskUnschedulableError as error:
        raise Lost("its node was lost") from error
    except (exceptions.WorkerCrashedError, exceptions.ObjectLostError) as error:
        raise Lost("its process was killed") from error
    except exceptions.RayError as error:
        raise _failed(error) from error


def _remote(function: Callable[..., Any], processors: int, node: str | None) -> Any:
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    anywhere = _anywhere(function, processors)
    if node is None:
        return anywhere
    return anywhere.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False))


@cache
def _anywhere(function: Callable[..., Any], processors: int) -> Any:
    """A function as Ray knows it; it is sent to the cluster once."""
    import ray

    memory = TASK_MEMORY if processors else 0
    known = ray.remote(
        max_retries=0, num_cpus=processors, memory=memory, scheduling_strategy="SPREAD"
    )
    return known(function)


def _failed(error: BaseException) -> ClusterError:
    line = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
    return ClusterError(
        f"Ray failed: {line}; see `ray status`, then run the same command to resume."
    )


def _address(error: BaseException) -> str:
    """The node's address, which Ray has only in its sentences."""
    found = re.search(r"(?:Node IP: |\bip=)([^,)\s]+)", str(error))
    return found[1] if found else "(unknown)"
