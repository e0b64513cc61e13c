"""Places within a layer where all chunks wait for each other before the layer goes on."""

from collections import Counter
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

from torch import Tensor

from quantkit.calibration.lockstep.chunks import Chunks
from quantkit.calibration.lockstep.scratch import Scratch

T = TypeVar("T")


class _LeftError(BaseException):
    """Ends a pass through a layer at a station."""

    def __init__(self, place: Hashable, key: Hashable, values: tuple[Tensor, ...]) -> None:
        super().__init__()
        self.place = place
        self.key = key
        self.values = values


class Stations:
    """The stations that chunks come to on their way through a layer.

    In memory a chunk waits where it is, with all that the layer made of it so far. With a
    ``scratch`` on the disk it leaves there what it brought and forgets the rest; when all have met,
    it goes through the layer again from the beginning, past the stations where it was. What it
    computes is the same.
    """

    def __init__(self, chunks: Chunks, scratch: Scratch | None) -> None:
        self._chunks = chunks
        self._scratch = scratch
        self._answers: dict[int, dict[Hashable, Any]] = {}
        self._passed: dict[int, Counter[Hashable]] = {}  # stations in this pass
        self._products: dict[int, int] = {}  # seen in this pass
        self._most: dict[int, int] = {}  # seen in any

    def run(self, layer: Callable[[], T]) -> T:
        """What a layer gives, in as many passes as it takes."""
        chunk = self._chunks.number
        self._answers[chunk], self._most[chunk] = {}, 0
        while True:
            self._passed[chunk], self._products[chunk] = Counter(), 0
            try:
                result = layer()
            except _LeftError as left:
                place, key, values = left.place, left.key, left.values
            else:
                del self._answers[chunk]
                return result
            answer = self._chunks.meet(place, values)
            del values
            self._answers[chunk][key] = answer

    def meet(self, place: Hashable, values: tuple[Tensor, ...], *, once: bool = False) -> Any:
        """Hand in something at a station; what comes back once all chunks have.

        At one of which there is but ``once`` per layer, who comes again gets the same back.
        """
        chunk = self._chunks.number
        passed, answers = self._passed[chunk], self._answers[chunk]
        key = (place, 0 if once else passed[place])
        passed[place] += 1
        if key in answers:
            return answers[key]
        if self._scratch is not None:
            raise _LeftError(place, key, self._scratch.keep(place, chunk, values))
        answer = self._chunks.meet(place, values)
        answers[key] = None if not once else answer  # there is one pass
        return answer

    def is_new(self) -> bool:
        """Whether no earlier pass came as far as this product, which counts."""
        chunk = self._chunks.number
        self._products[chunk] += 1
        if self._products[chunk] <= self._most[chunk]:
            return False
        self._most[chunk] = self._products[chunk]
        return True
