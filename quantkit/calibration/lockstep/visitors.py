"""Who looks on while a model is run layer by layer, or changes what goes on."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from quantkit.calibration.lockstep.dispatch import Rows
from quantkit.calibration.lockstep.watching import Replacer, Watcher
from quantkit.calibration.routing import Routing


class Merger(Protocol):
    """Makes one dense part of a layer's experts, with which the run then goes on."""

    def __call__(
        self, layer: int, inputs: Rows, outputs: Tensor, routing: Routing
    ) -> Callable[[Tensor], Tensor]:
        """The dense part as a function of rows of inputs, on the device.

        Args:
            layer: its number.
            inputs: what the experts get, (tokens, hidden).
            outputs: what they make of it together; the same shape.
            routing: where the tokens went.

        """


class Keeper(Protocol):
    """Keeps what layers are called with, for a way back. Several threads call it at once."""

    def enter(
        self, layer: int, chunk: int, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> None:
        """Take in what a layer is called with."""

    def leave(self, chunk: int, out: Any) -> Any:
        """What to go on with after the last layer, instead of what that gave."""

    def see_scores(
        self, chunk: int, some: slice, x: Tensor, gradient: Tensor, rows: Tensor
    ) -> None:
        """Take in inputs of some rows of the matrix of scores, and gradients of those scores."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Visitors:
    """Who sees, or changes, what goes on within the layers.

    ``watcher`` sees what goes into the matrices; ``replacer`` makes others of them; ``merger`` puts
    a dense part in the place of experts. ``alter`` gives, of the number of a chunk and what goes
    into a matrix, what is to go into it instead. Experts with fewer than ``fewest_tokens`` are
    shown others'. ``keeper`` keeps what a way back through the layers needs.
    """

    watcher: Watcher | None = None
    replacer: Replacer | None = None
    merger: Merger | None = None
    alter: Callable[[int, Tensor], Tensor] | None = None
    fewest_tokens: int = 0
    keeper: Keeper | None = None
