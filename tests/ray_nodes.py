"""A Ray cluster of this machine: nodes that are started, and killed, one by one."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

_OBJECT_STORE = 80 * 10**6  # the least that Ray takes
_STARTS = 10  # again, of nodes that gave up, after half a minute, because others were busy
_RAY = (sys.executable, "-m", "ray.scripts.scripts")
# Ends with 0 once so many nodes are there, and with 1 after a while: one may have given up.
_WAIT_FOR = """
import ray, sys, time
ray.init(sys.argv[1], log_to_driver=False, logging_level='CRITICAL')
for _ in range(100):
    if sum(node["Alive"] for node in ray.nodes()) >= int(sys.argv[2]):
        sys.exit()
    time.sleep(0.2)  # time: asked again and again
sys.exit(1)
"""


class RayNodes:
    """A cluster; every node is a session of processes of its own.

    Args:
        processors: of each node.

    """

    def __init__(self, processors: int = 1) -> None:
        self._processors = processors
        # Ray's sockets lie in it, and their paths must be short.
        self._folder = Path(tempfile.mkdtemp(prefix="ray", dir="/tmp"))
        port, client_port = _free_ports(2)
        self.address = f"127.0.0.1:{port}"
        self.client_address = f"ray://127.0.0.1:{client_port}"
        self.environment = os.environ | {
            "RAY_ADDRESS": self.address,
            "RAY_AUTH_MODE": "disabled",
            # How long a client waits for the head node. RAY_CLIENT_SERVER_CHECK_CHANNEL_TIMEOUT_S,
            # for which that waits for a client's process, stays: one that died is waited for, too.
            "RAY_CLIENT_MAX_CONNECTION_TIMEOUT_S": "60",
            "RAY_USAGE_STATS_ENABLED": "0",
        }
        self._head = [
            "--head",
            f"--port={port}",
            f"--ray-client-server-port={client_port}",
            "--include-dashboard=false",
            f"--temp-dir={self._folder}",
        ]
        self._commands: list[list[str]] = []
        self._nodes: list[subprocess.Popen[bytes]] = []

    def start(self, *wrapped: Sequence[str]) -> None:
        """Start a node for each argument, which is put before its command, and wait for them."""
        for wrap in wrapped:
            where = ["--address", self.address] if self._nodes else self._head
            sizes = (f"--num-cpus={self._processors}", f"--object-store-memory={_OBJECT_STORE}")
            command = [*wrap, *_RAY, "start", *where, *sizes, "--block"]
            self._commands.append(command)
            self._nodes.append(self._begin(command))
            if len(self._nodes) == 1:
                self._wait_until(lambda: _listens(self.address))
        self._wait_until(self._has_all)

    def restart(self, number: int) -> None:
        """Start a node again that was killed, and wait for it."""
        self._nodes[number] = self._begin(self._commands[number])
        self._wait_until(self._has_all)

    def _wait_until(self, ready: Callable[[], bool]) -> None:
        """Wait, and start nodes again that give up meanwhile."""
        starts = 0
        while not ready():
            time.sleep(0.2)  # time: asked again and again, for as long as the nodes are there
            for number, node in enumerate(self._nodes):
                if node.poll() is None:
                    continue
                if starts == _STARTS:
                    logs = "\n".join(log.read_text() for log in self._folder.glob("*.log"))
                    raise AssertionError(f"Ray does not start:\n{logs}")
                self.kill(number)
                self._nodes[number] = self._begin(self._commands[number])
                starts += 1

    def kill(self, number: int) -> None:
        """Kill every process of a node at once, as a power cut would."""
        for process, _ in self._processes(number):
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        self._nodes[number].wait()

    def kill_worker(self, number: int, task: str, build: "subprocess.Popen[str]") -> bool:
        """Kill a process of a node in the middle of a task of this name, while a build runs.

        False where the build was over before one was caught.
        """
        while build.poll() is None:
            for process, _ in self._at(number, task):
                os.kill(process, signal.SIGSTOP)
                if (process, f"ray::{task}") in self._at(number, task):  # it was not too late
                    os.kill(process, signal.SIGKILL)
                    return True
                os.kill(process, signal.SIGCONT)
        return False

    def _begin(self, command: list[str]) -> subprocess.Popen[bytes]:
        with (self._folder / f"{len(self._nodes)}.log").open("ab") as log:
            return subprocess.Popen(
                command,
                env=self.environment | {"RAY_ADDRESS": ""},
                cwd=self._folder,  # nobody starts nodes where a build runs
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def _at(self, number: int, task: str) -> list[tuple[int, str]]:
        """The processes of a node that are at a task."""
        return [found for found in self._processes(number) if found[1] == f"ray::{task}"]

    def _processes(self, number: int) -> Iterator[tuple[int, str]]:
        """The processes of a node, which are a session, by id, with their command lines."""
        for process in Path("/proc").glob("[0-9]*"):
            with suppress(FileNotFoundError, ProcessLookupError):
                if os.getsid(int(process.name)) == self._nodes[number].pid:
                    line = (process / "cmdline").read_bytes().decode(errors="replace")
                    yield int(process.name), line.replace("\0", " ").rstrip()

    def stop(self) -> None:
        """End all of it."""
        for number, node in enumerate(self._nodes):
            if node.poll() is None:
                self.kill(number)
        shutil.rmtree(self._folder, ignore_errors=True)

    def _has_all(self) -> bool:
        """Whether all nodes can be used."""
        if not _listens(self.address):
            return False
        command = [sys.executable, "-W", "ignore", "-c", _WAIT_FOR, self.address]
        asked = subprocess.run(
            [*command, str(len(self._nodes))],
            env=self.environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            check=False,
        )
        return asked.returncode == 0


@contextmanager
def running(*wrapped: Sequence[str], processors: int = 1) -> Iterator[RayNodes]:
    """A cluster with a node for each argument (see `RayNodes.start`), until the block ends."""
    nodes = RayNodes(processors)
    try:
        nodes.start(*wrapped)
        yield nodes
    finally:
        nodes.stop()


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [server.getsockname()[1] for server in sockets]
    for server in sockets:
        server.close()
    return ports


def _listens(address: str) -> bool:
    host, port = address.split(":")
    try:
        # time: nobody there says so at once
        socket.create_connection((host, int(port)), timeout=60).close()
    except OSError:
        return False
    return True
