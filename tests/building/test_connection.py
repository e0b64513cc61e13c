"""A head node that gets no process for a client up: quantkit tries again and says so once."""

import pytest

from quantkit.building.cluster import calls, connection
from quantkit.core.errors import ClusterError

ADDRESS = "ray://head:10001"
NOT_STARTED = """Initialization failure from server:
Traceback (most recent call last):
  File "ray/util/client/server/proxier.py", line 772, in Datapath
    raise RuntimeError(
RuntimeError: Starting Ray client server failed. See ray_client_server_23000.err for detailed logs.
"""
NO_ANSWER = "Proxy failed to Connect to backend! Check `ray_client_server.err` on the head node."


class Head:
    """What ``ray.init`` meets: one error after the other, then a connection."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *errors: Exception) -> None:
        self.errors = list(errors)
        self.asked: list[str] = []
        self.said: list[str] = []
        monkeypatch.setattr("ray.init", self._init)
        monkeypatch.setattr("ray.shutdown", lambda: None)
        monkeypatch.setattr(calls, "live_nodes", list)
        monkeypatch.setattr(calls, "count_processors", lambda: 0)

    def connect(self) -> None:
        with connection.connect(ADDRESS, local_jobs=1, log=self.said.append):
            pass

    def _init(self, address: str, **_: object) -> None:
        self.asked.append(address)
        if self.errors:
            raise self.errors.pop(0)


def test_it_tries_again_and_says_so_once(monkeypatch: pytest.MonkeyPatch) -> None:
    late = [ConnectionAbortedError(said) for said in (NOT_STARTED, NO_ANSWER, NOT_STARTED)]
    head = Head(monkeypatch, *late)
    head.connect()
    assert head.asked == [ADDRESS] * 4
    assert head.said == [
        "The cluster's head node could not start a process for this client; trying again."
    ]


def test_it_gives_up(monkeypatch: pytest.MonkeyPatch) -> None:
    head = Head(monkeypatch, *[ConnectionAbortedError(NOT_STARTED)] * 5)
    with pytest.raises(ClusterError) as refused:
        head.connect()
    assert str(refused.value).startswith(
        f"No Ray cluster can be used at {ADDRESS} (RuntimeError: Starting Ray client server "
        "failed. See ray_client_server_23000.err for detailed logs); check it with `ray status`"
    )
    assert len(head.asked) == 4
    assert len(head.said) == 1


@pytest.mark.parametrize(
    "error", [ConnectionError("ray client connection timeout"), RuntimeError(NOT_STARTED)]
)
def test_another_error_is_final(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    head = Head(monkeypatch, error)
    with pytest.raises(ClusterError, match="No Ray cluster can be used at"):
        head.connect()
    assert len(head.asked) == 1
    assert head.said == []
