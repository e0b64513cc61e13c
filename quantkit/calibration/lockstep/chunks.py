"""One thread per chunk of text, all of which wait for each other where they are told to."""

import threading
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch


class _AbandonedError(BaseException):
    """Ends a thread whose neighbour, or whose conductor, failed."""


class Chunks:
    """Threads that run the same code, each over a chunk, and meet at stations.

    At a station each hands something in and waits until all have. Then the thread that runs them
    has what all handed in, and gives each something back. No more than ``side_by_side`` run at
    once, each on one core: a matrix product that is not split over cores is the same everywhere.
    """

    def __init__(self, count: int, side_by_side: int) -> None:
        self._count = count
        self._permits = threading.Semaphore(side_by_side)
        self._local = threading.local()
        self._news = threading.Condition()
        self._waiting: dict[int, tuple[Hashable, Any]] = {}
        self._answers: dict[int, Any] = {}
        self._ended = 0
        self._error: BaseException | None = None

    @property
    def number(self) -> int:
        """The chunk of the thread that asks."""
        number: int = self._local.number
        return number

    def meet(self, station: Hashable, value: Any) -> Any:
        """Hand in a value at a station, wait for the others, and return what is given back."""
        self._permits.release()
        try:
            with self._news:
                self._waiting[self.number] = (station, value)
                del value  # so that it lives on only where it is needed
                self._news.notify_all()
                self._news.wait_for(lambda: self._error or self.number in self._answers)
                if self._error:
                    raise _AbandonedError
                return self._answers.pop(self.number)
        finally:
            self._permits.acquire()

    def run(
        self,
        body: Callable[[int], None],
        serve: Callable[[Hashable, list[Any]], Sequence[Any]],
    ) -> None:
        """Run ``body`` for each chunk.

        Args:
            body: gets the number of a chunk.
            serve: called in this thread with a station and what was handed in there, in the order
                of the chunks; returns what each gets back.

        Raises:
            BaseException: what either of them raised first; all threads have ended then.

        """
        cores = torch.get_num_threads()
        threads = [
            threading.Thread(target=self._work, args=(body, number), name=f"chunk {number}")
            for number in range(self._count)
        ]
        try:
            for thread in threads:
                thread.start()
            while (met := self._gather()) is not None:
                station, values = met
                answers = serve(station, values)
                del met, values
                with self._news:
                    self._answers = dict(enumerate(answers))
                    del answers
                    self._news.notify_all()
        except BaseException as error:
            self._stop(error)
            raise
        finally:
            for thread in threads:
                if thread.ident is not None:
                    thread.join()
            torch.set_num_threads(cores)  # new threads ask for the last number that was set

    def _work(self, body: Callable[[int], None], number: int) -> None:
        self._local.number = number
        with self._permits:
            try:
                with self._news:
                    if self._error:
                        return
                torch.set_num_threads(1)
                with torch.no_grad():
                    body(number)
            except BaseException as error:  # noqa: BLE001 - raised by `run`
                self._stop(error)
        with self._news:
            self._ended += 1
            self._news.notify_all()

    def _stop(self, error: BaseException) -> None:
        with self._news:
            self._error = self._error or error
            self._news.notify_all()

    def _gather(self) -> tuple[Hashable, list[Any]] | None:
        """The station at which all threads wait, and what they brought; None at the end."""
        with self._news:
            self._news.wait_for(
                lambda: self._error or len(self._waiting) + self._ended == self._count
            )
            if self._error:
                raise self._error
            if not self._waiting:
                return None
            met, self._waiting = self._waiting, {}
        stations = {station for station, _ in met.values()}
        if len(stations) > 1 or len(met) < self._count:
            raise RuntimeError(f"The chunks went different ways: {sorted(map(str, stations))}.")
        return stations.pop(), [met[number][1] for number in range(self._count)]
