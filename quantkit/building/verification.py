"""Reading the files of a build back, several at once."""

from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor, wait
from threading import Lock

from quantkit.building.executor import Executor
from quantkit.building.readback import Written

_REPORT_SECONDS = 0.1


def verify(
    executor: Executor,
    written: Sequence[Sequence[Sequence[Written]]],
    report: Callable[[int], None],
) -> list[list[Future[str]]]:
    """Compare files with what was written to them; the sha256 of each, or what is wrong with it.

    Args:
        executor: whose job it is to read.
        written: by artifact and file.
        report: called from this thread with the bytes that were read.

    """
    counter = _Counter()
    with ThreadPoolExecutor(executor.readers, "verify") as pool:
        futures = [
            [
                pool.submit(executor.read_back, artifact, file, parts, counter.add)
                for file, parts in enumerate(files)
            ]
            for artifact, files in enumerate(written)
        ]
        waiting = {future for files in futures for future in files}
        try:
            while waiting:
                _, waiting = wait(waiting, timeout=_REPORT_SECONDS)
                report(counter.n_bytes)
        except BaseException:
            counter.stopped = True
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return futures


class _Counter:
    """Bytes read back by all threads, which leave off once they are told to."""

    def __init__(self) -> None:
        self.n_bytes = 0
        self.stopped = False
        self._lock = Lock()

    def add(self, n_bytes: int) -> None:
        if self.stopped:
            raise CancelledError
        with self._lock:
            self.n_bytes += n_bytes
