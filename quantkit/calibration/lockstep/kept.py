"""What a way back through the layers needs of the way there."""

from collections.abc import Callable, Mapping, MutableMapping
from typing import Any

import torch
from torch import Tensor

from quantkit.calibration.lockstep.scratch import Scratch
from quantkit.core.errors import CalibrationError


class Kept:
    """What layers were called with, and the gradient of what the latest one gave.

    A `Keeper`. Hidden states lie in memory, or on the disk with a ``scratch``; what else a layer is
    called with (masks, rotations) the model shares between layers. ``see_scores``: see `Keeper`.
    """

    def __init__(
        self,
        scratch: Scratch | None,
        see_scores: Callable[[int, slice, Tensor, Tensor, Tensor], None],
    ) -> None:
        self._scratch = scratch
        self._calls: dict[tuple[int, int], tuple[tuple[Any, ...], Mapping[str, Any]]] = {}
        self._hidden: dict[tuple[int, int], Tensor] = {}
        self._leaves: dict[int, Tensor] = {}
        self._gradients: dict[int, Tensor] = {}
        self.see_scores = see_scores

    def enter(
        self, layer: int, chunk: int, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> None:
        """Keep what a layer is called with.

        Raises:
            CalibrationError: beside hidden states, it is given what other layers made.

        """
        if any(isinstance(value, MutableMapping) for value in kwargs.values()):
            raise CalibrationError(
                "The layers of this model pass on more than hidden states; quantkit cannot tell "
                "how much its predictions care about each tensor."
            )
        named = "" if args else "hidden_states"
        self._hidden[layer, chunk] = self._keep(
            ("input", layer), chunk, kwargs[named] if named else args[0]
        )
        others = {key: value for key, value in kwargs.items() if key != named}
        self._calls[layer, chunk] = args[1:], others

    def leave(self, chunk: int, out: Any) -> Any:
        """Go on with what the last layer gave as a leaf, and with gradients."""
        torch.set_grad_enabled(True)  # in the thread of this chunk, which ends after the scores
        leaf = first_of(out).detach().requires_grad_()
        self._leaves[chunk] = leaf
        return leaf if isinstance(out, Tensor) else (leaf, *out[1:])

    def turn(self, chunk: int) -> None:
        """Take the gradient of what the last layer gave, which has been computed."""
        leaf = self._leaves.pop(chunk)
        assert leaf.grad is not None  # noqa: S101 - the scores depend on it
        self.put(chunk, leaf.grad)

    def put(self, chunk: int, gradient: Tensor) -> None:
        """Keep a chunk's gradient of what a layer gave, in place of the one before."""
        if self._scratch is not None and chunk in self._gradients:
            self._gradients[chunk].copy_(gradient)
        else:
            self._gradients[chunk] = self._keep("gradient", chunk, gradient)

    def gradient(self, chunk: int) -> Tensor:
        """The gradient of what the latest layer gave, of a chunk."""
        return self._gradients[chunk]

    def hidden(self, layer: int, chunk: int) -> Tensor:
        """What went into a layer, as a leaf."""
        return self._hidden[layer, chunk].detach().requires_grad_()

    def call(self, layer: int, chunk: int, own: Callable[..., Any], hidden: Tensor) -> Tensor:
        """Call a layer again, as it was called; the hidden states that it gives."""
        args, kwargs = self._calls[layer, chunk]
        return first_of(own(hidden, *args, **kwargs))

    def drop(self, layer: int) -> None:
        """Let go of what was kept of a layer."""
        for place in [place for place in self._calls if place[0] == layer]:
            del self._calls[place], self._hidden[place]
        if self._scratch is not None:
            self._scratch.drop(("input", layer))

    def _keep(self, place: Any, chunk: int, tensor: Tensor) -> Tensor:
        if self._scratch is None:
            return tensor
        return self._scratch.keep(place, chunk, (tensor,))[0]


def first_of(out: Any) -> Tensor:
    """The hidden states of what a layer gives: that, or the first of several."""
    hidden: Tensor = out if isinstance(out, Tensor) else out[0]
    return hidden
