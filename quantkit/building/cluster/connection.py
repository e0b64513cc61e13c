"""A Ray cluster: one of this machine's own, one that runs here already, or one at an address."""

import multiprocessing
import os
import platform
import re
import signal
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from tempfile import TemporaryFile
from typing import Any

from quantkit.building.cluster import calls
from quantkit.core.errors import ClusterError, MissingPackageError
from quantkit.core.packages import why_missing
from quantkit.encodings.kernel import load_kernel

_LOCAL, _RUNNING = "local", "auto"
_ADDRESS = re.compile(r"ray://[^\s/]+:\d+")
_OBJECT_STORE = 256 * 2**20  # plans go through it, weights never do
# Ray itself tries for two minutes to reach a cluster that is not there, then ends the process.
_CONNECT_SECONDS = 15
_START_SECONDS = 5  # more if others use the processors
# A head node starts a process for each client, and says one of these where none came up: others use
# its processors, or it forked in the middle of a call of gRPC's. Another client's may come up all
# the same. Between attempts lies the half minute that Ray keeps a lost client's place.
# ray/util/client/server/proxier.py
_NOT_UP = ("Starting Ray client server failed", "Proxy failed to Connect to backend")
_ATTEMPTS = 4
_QUIET: dict[str, Any] = {"log_to_driver": False, "logging_level": "CRITICAL"}


@dataclass(frozen=True, slots=True)
class Cluster:
    """A cluster that this process is connected to.

    ``jobs`` is the most slabs at a time, None for as many as it has processors. ``node`` is the id
    of the node that this process is on, if it is on one. ``log`` is told what goes wrong on nodes
    and is mended.
    """

    jobs: int | None
    node: str | None
    log: Callable[[str], None]


@contextmanager
def connect(
    address: str,
    *,
    local_jobs: int,
    jobs: int | None = None,
    log: Callable[[str], None] = lambda _: None,
) -> Iterator[Cluster]:
    """Connect to a cluster for as long as the context lasts.

    Args:
        address: ``local`` starts a cluster on this machine, which ends with the context; ``auto``
            is the one that runs here, or that RAY_ADDRESS names; ``ray://HOST:PORT`` any other.
        local_jobs: the processors of a local one.
        jobs: the most slabs at a time.
        log: told what goes wrong and is mended.

    Raises:
        MissingPackageError: Ray is not installed.
        ClusterError: there is no such cluster.

    """
    if address not in (_LOCAL, _RUNNING) and not _ADDRESS.fullmatch(address):
        raise ClusterError(
            f"--cluster {address} must be local, auto or ray://HOST:PORT (10001 is Ray's usual "
            "port for that)."
        )
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it would ask the network
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_CLIENT_MAX_CONNECTION_TIMEOUT_S", "5")  # of each of three attempts
    try:
        import ray
    except ImportError:
        raise MissingPackageError(why_missing("Ray", "ray", "--cluster")) from None
    options = dict(_QUIET)
    if address == _LOCAL:
        options |= {
            "num_cpus": jobs or local_jobs,
            "include_dashboard": False,
            "object_store_memory": _OBJECT_STORE,
        }
    elif address == _RUNNING:
        _try()
    try:
        with warnings.catch_warnings(action="ignore"), _our_sigterm():
            _connect(partial(ray.init, address, **options), log)
    except Exception as error:  # of no narrower class where a node of Ray does not start
        raise _unreachable(address, str(error)) from error
    try:
        # Nodes start processes now, while this one imports what it needs. They are waited for,
        # because of what is asked meanwhile Ray would start more than there are processors.
        count = calls.count_processors() - len(calls.live_ids())
        starting = [calls.call(platform.node) for _ in range(count)]
        load_kernel("fast")
        if starting:
            ray.wait(starting, num_returns=count, timeout=_START_SECONDS)
        # A cluster of our own has just as many processors as may work.
        most = None if address == _LOCAL else jobs
        is_far = address not in (_LOCAL, _RUNNING)
        yield Cluster(most, None if is_far else ray.get_runtime_context().get_node_id(), log)
    finally:
        ray.shutdown()


def _connect(init: Callable[[], object], log: Callable[[str], None]) -> None:
    """Connect, and try again where the head node had no process for this client in time."""
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            init()
            return
        except ConnectionError as error:
            if attempt == _ATTEMPTS or not any(words in str(error) for words in _NOT_UP):
                raise
        if attempt == 1:
            log("The cluster's head node could not start a process for this client; trying again.")


@contextmanager
def _our_sigterm() -> Iterator[None]:
    """Leave what SIGTERM does as it was: Ray would have it end the process with its number."""
    ours = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, ours)


def _try() -> None:
    """Connect to the cluster that runs, in a copy of this process, which can be stopped.

    Raises:
        ClusterError: that does not work.

    """
    with TemporaryFile("w+") as said:
        # Unlike a new one it has Ray already, and what it lacks are threads of numpy, unneeded.
        process = multiprocessing.get_context("fork").Process(
            target=_connect_and_exit, args=(said.fileno(),)
        )
        process.start()
        try:
            process.join(_CONNECT_SECONDS)
            if process.is_alive():
                raise _unreachable(_RUNNING, f"no answer in {_CONNECT_SECONDS} s")
        finally:
            process.kill()
            process.join()
        if process.exitcode != 0:
            said.seek(0)
            raise _unreachable(_RUNNING, said.read())


def _connect_and_exit(said: int) -> None:
    """Connect, and leave at once; what is said goes to a file."""
    import ray

    for stream in (1, 2):
        os.dup2(said, stream)
    ray.init(_RUNNING, **_QUIET)
    os._exit(0)


def _unreachable(address: str, said: str) -> ClusterError:
    reason = (said.strip().splitlines() or [""])[-1].strip().rstrip(".")[:200]
    if address == _LOCAL:
        return ClusterError(
            f"Ray does not start here ({reason}); run the same command again when this machine has "
            "less to do, or without --cluster."
        )
    where = "runs here" if address == _RUNNING else f"can be used at {address}"
    return ClusterError(
        f"No Ray cluster {where} ({reason}); check it with `ray status`, set RAY_AUTH_MODE=token "
        "if it asks for one, start one with `ray start --head`, or use --cluster local."
    )
