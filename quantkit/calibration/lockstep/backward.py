"""The way back: how predictions bend with each matrix of a model, with a layer in memory.

All chunks go through the layers, and what each layer was called with is kept. Then, from the last
layer to the first, each is loaded once more and run again under autograd, chunk by chunk. Experts
are apart from that: what goes into them is gathered of all chunks, and they are run, and their
gradients computed, one after another; what is around them is run again with the results.
"""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from quantkit.building.output import check_space
from quantkit.calibration.lockstep.curvature import Curvature, Place
from quantkit.calibration.lockstep.dispatch import Dispatch
from quantkit.calibration.lockstep.experts import Call
from quantkit.calibration.lockstep.experts_back import go_back
from quantkit.calibration.lockstep.forward import LockstepForward, read_rows_of
from quantkit.calibration.lockstep.kept import Kept
from quantkit.calibration.lockstep.losses import exact_math, scored_from
from quantkit.calibration.lockstep.parameters import empty, fill
from quantkit.calibration.lockstep.run import run
from quantkit.calibration.lockstep.scratch import Scratch
from quantkit.calibration.lockstep.states import Room, States
from quantkit.calibration.lockstep.visitors import Visitors
from quantkit.calibration.lockstep.watching import Matrices, Watching, require_finite
from quantkit.calibration.routing import Routing
from quantkit.core.errors import CalibrationError

T = TypeVar("T")

_OF_EXPERTS = 3  # arrays of states: what goes into experts, what comes out, and its gradient
_PLACES = _CALLS, _BACK = ("calls", "back")  # where they are kept within a layer
SEED = 20240417
_THERE = 0.3  # of the time


@dataclass(slots=True)
class Bend:
    """What errors as large as the matrices themselves would cost, to second order, in nats.

    ``rows`` has a number for each row, by parameter and expert (None of one that has but one
    matrix); they are means over the scored tokens. ``embeddings`` is that of the embeddings as
    what goes into the first layer, all together.
    """

    rows: dict[Place, NDArray[np.float64]] = field(default_factory=dict)
    embeddings: float = 0.0


def find_bend(
    forward: LockstepForward,
    tokens: NDArray[np.int64],
    max_memory: int,
    report: Callable[[float], None] = lambda _: None,
) -> Bend:
    """Measure a model over chunks of tokens, whose second halves are scored.

    The labels are drawn from the model's own predictions, always the same.

    Args:
        forward: the model.
        tokens: shape (chunks, context).
        max_memory: bytes of activations above which they go to temporary files.
        report: told the share of the work that is done.

    Raises:
        CalibrationError: the model cannot be run so, or an activation is not finite.
        CheckpointError: a weight cannot be read.
        NoSpaceError: the activations do not fit on the disk of temporary files.

    """
    _refuse_unknown(forward)
    more = len(forward.layers) + 1 + (_OF_EXPERTS if forward.experts else 0)
    room = Room.of(forward, tokens.shape, max_memory, is_durable=False, more_arrays=more)
    with TemporaryDirectory(prefix="quantkit-") as temporary:
        folder = Path(temporary)
        check_space(folder, room.n_bytes)
        (folder / "kept").mkdir()
        spills = room.spills and forward.device.type == "cpu"
        scratch = Scratch(folder / "kept", len(tokens)) if spills else None
        states = States(folder, len(tokens), forward.device, spill=room.spills, durable=False)
        return _Way(forward, tokens, scratch, report).measure(states)


def _refuse_unknown(forward: LockstepForward) -> None:
    for parts in forward.parts.values():
        inside = [forward.experts[name] for name in parts if name in forward.experts]
        if len(inside) > 1 or any(some.are_alone for some in inside):
            raise CalibrationError(
                f"{type(forward.model).__name__} has experts within its attention; quantkit cannot "
                "tell how much its predictions care about each tensor."
            )


class _ReachedError(BaseException):
    """Ends a pass through a layer at its experts."""


class _Way:
    """There and back."""

    def __init__(
        self,
        forward: LockstepForward,
        tokens: NDArray[np.int64],
        scratch: Scratch | None,
        report: Callable[[float], None],
    ) -> None:
        self._forward = forward
        self._tokens = tokens
        self._report = report
        self._scratch = scratch
        self._curvature = Curvature()
        self._scores_seen = Curvature()  # by first row of the matrix of scores
        self._matrices = Matrices()
        self._loaded: dict[str, Tensor] = {}  # of the layer at hand
        self._kept = Kept(scratch, self._see_scores)
        self._local = threading.local()
        self._bend = Bend()
        self._last = tokens.shape[1] - scored_from(tokens.shape[1])
        self._scored = len(tokens) * (self._last - 1)
        cores = torch.get_num_threads() if forward.device.type == "cpu" else 1
        self._at_once = min(cores, len(tokens))
        head = forward.model.get_output_embeddings()
        names = [name for name, module in forward.modules.items() if module is head]
        self._head = f"{names[0]}.weight" if names else ""

    def measure(self, states: States) -> Bend:
        forward, n_layers = self._forward, len(self._forward.layers)

        def finish_layer(_layer: int, _routing: Routing | None) -> None:
            states.turn_over()

        run(
            forward,
            self._tokens,
            states,
            self._finish,
            Visitors(keeper=self._kept),
            finish_layer=finish_layer,
            report=lambda done: self._report(_THERE * done / n_layers),
            last=self._last,
        )
        with exact_math():
            self._end_scores()
            for number in reversed(range(n_layers)):
                self._go_through(number)
                self._report(1 - (1 - _THERE) * number / n_layers)
        return self._bend

    def _finish(self, number: int, logits: Tensor) -> None:
        """Draw labels from the predictions, and go back to what the last layer gave."""
        with torch.no_grad():
            chances = torch.softmax(logits[:-1].float(), -1)
            drawn = torch.Generator().manual_seed(SEED + number)
            labels = torch.multinomial(chances.cpu(), 1, generator=drawn).to(logits.device)
            chances.scatter_add_(-1, labels, torch.full_like(labels, -1, dtype=chances.dtype))
        logits[:-1].backward(chances)
        self._kept.turn(number)

    def _see_scores(
        self, chunk: int, some: slice, x: Tensor, gradient: Tensor, rows: Tensor
    ) -> None:
        self._scores_seen.add(chunk, (self._head, some.start), x, gradient, rows)

    def _end_scores(self) -> None:
        parts = self._scores_seen.take()
        if parts:
            found = [parts[place] for place in sorted(parts, key=lambda place: place[1] or 0)]
            self._bend.rows[self._head, None] = np.concatenate(found) / self._scored

    def _go_through(self, number: int) -> None:
        """Go back through a layer."""
        forward = self._forward
        name = forward.layers[number]
        parts = forward.parts[name]
        own = next((part for part in parts if part in forward.experts), None)
        with ExitStack() as stack:
            for table in forward.tables.keys() & parts.keys():
                stack.callback(read_rows_of(forward, table))
            stack.callback(empty, parts)
            loaded = forward.parameters.load(forward.dense(name))
            fill(parts, loaded)
            self._loaded = loaded
            self._matrices.put(loaded)
            stack.callback(self._forget)
            if own is None:
                self._each(lambda chunk: self._back(number, chunk))
            else:
                stack.callback(forward.experts[own].put(lambda *call: self._local.meet(*call)))
                self._go_through_experts(number, own)
        for place, costs in self._curvature.take().items():
            self._bend.rows[place] = costs / self._scored
        if number == 0:
            self._end_embeddings()
        self._kept.drop(number)

    def _forget(self) -> None:
        self._loaded = {}
        self._matrices.put({})

    def _go_through_experts(self, number: int, name: str) -> None:
        """Go back through a layer that has experts."""
        forward, experts = self._forward, self._forward.experts[name]
        calls = [Call(*inputs) for inputs in self._each(partial(self._reach, number))]
        shape = (sum(len(call.hidden) for call in calls), *calls[0].hidden.shape[1:])
        where = forward.device
        made = self._scratch.zeros(shape) if self._scratch else torch.zeros(shape, device=where)

        def read(matrix: str, expert: int) -> Tensor:
            return forward.expert(f"{name}.{matrix}", expert)

        Dispatch(experts, read, lambda *_: None).run(calls, made, lambda _: None)
        parts = made.split(len(calls[0].hidden))
        upstream = self._each(lambda chunk: self._at_experts(number, chunk, parts[chunk]))
        of_calls = go_back(
            experts,
            calls,
            upstream,
            read,
            lambda chunk, matrix, expert, x, out, rows: self._curvature.watch(
                chunk, (f"{name}.{matrix}", expert), x, out, rows
            ),
        )
        self._each(lambda chunk: self._back(number, chunk, parts[chunk], of_calls[chunk]))
        if self._scratch is not None:
            for place in _PLACES:
                self._scratch.drop(place)

    def _reach(self, number: int, chunk: int) -> tuple[Tensor, ...]:
        """What a chunk comes with to the experts of a layer."""

        def meet(*call: Tensor) -> Tensor:
            raise _ReachedError(call)

        try:
            with torch.no_grad():
                self._call(number, chunk, self._kept.hidden(number, chunk), meet)
        except _ReachedError as reached:
            call: tuple[Tensor, ...] = reached.args[0]
            return call if self._scratch is None else self._scratch.keep(_CALLS, chunk, call)
        raise CalibrationError(
            f"Layer {number} has experts that it does not ask; quantkit cannot tell how much the "
            "model's predictions care about each tensor."
        )

    def _at_experts(self, number: int, chunk: int, made: Tensor) -> Tensor:
        """The gradient of what the experts of a layer made of a chunk."""
        leaf = made.detach().requires_grad_()
        x = self._kept.hidden(number, chunk).detach()
        out = self._call(number, chunk, x, lambda *_: leaf)
        (found,) = torch.autograd.grad([out], [leaf], [self._kept.gradient(chunk)])
        return found if self._scratch is None else self._scratch.keep(_BACK, chunk, (found,))[0]

    def _back(
        self,
        number: int,
        chunk: int,
        made: Tensor | None = None,
        of_call: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        """Go back through a layer with a chunk, and keep the gradient of what went in.

        ``made`` is what its experts made, and ``of_call`` are the gradients of what they were given
        (the hidden states and the weights).
        """
        met: list[Tensor] = []

        def meet(*call: Tensor) -> Tensor:
            met.extend((call[0], call[2]))
            assert made is not None  # noqa: S101 - there are experts
            return made

        x = self._kept.hidden(number, chunk)
        with Watching(self._matrices, partial(self._watch, chunk)):
            out = self._call(number, chunk, x, meet)
        ends = [(out, self._kept.gradient(chunk)), *zip(met, of_call or (), strict=True)]
        ends = [(value, gradient) for value, gradient in ends if value.requires_grad]
        torch.autograd.backward([value for value, _ in ends], [gradient for _, gradient in ends])
        assert x.grad is not None  # noqa: S101 - the layer was given it
        require_finite(x.grad, f"gradients of layer {number}")
        self._kept.put(chunk, x.grad)

    def _call(self, number: int, chunk: int, x: Tensor, meet: Callable[..., Tensor]) -> Tensor:
        self._local.meet = meet
        layer = self._forward.modules[self._forward.layers[number]]
        return self._kept.call(number, chunk, layer.forward, x)

    def _watch(self, chunk: int, name: str, expert: int | None, x: Tensor, out: Tensor) -> None:
        matrix = self._loaded[name] if expert is None else self._loaded[name][expert]
        self._curvature.watch(chunk, (name, expert), x, out, matrix)

    def _end_embeddings(self) -> None:
        """All chunks have come to where they began."""
        total = 0.0
        for chunk, ids in enumerate(torch.from_numpy(self._tokens)):
            x, gradient = self._kept.hidden(0, chunk).detach()[0], self._kept.gradient(chunk)[0]
            used, places = ids.to(x.device).unique(return_inverse=True)
            shape = (len(used), x.shape[1])
            of_token = torch.zeros(shape, device=x.device).index_add_(0, places, gradient)
            tokens = torch.zeros(shape, device=x.device).index_copy_(0, places, x)
            total += float((of_token * tokens).square().double().sum())
        self._bend.embeddings = total / 2 / self._scored

    def _each(self, body: Callable[[int], T]) -> list[T]:
        """Do something for each chunk, some of them side by side, each on one core."""
        cores = torch.get_num_threads()
        begin = partial(torch.set_num_threads, 1)
        try:
            with ThreadPoolExecutor(self._at_once, "chunk", begin) as pool:
                return list(pool.map(body, range(len(self._tokens))))
        finally:
            torch.set_num_threads(cores)  # new threads ask for the last number that was set
