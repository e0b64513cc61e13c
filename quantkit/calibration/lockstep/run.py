"""One run of a model over chunks of text: all go through a layer before the next is read."""

import threading
import weakref
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from quantkit.building.heap import give_back_freed, share_heap
from quantkit.calibration.lockstep.chunks import Chunks
from quantkit.calibration.lockstep.dispatch import Dispatch, Rows
from quantkit.calibration.lockstep.experts import Call
from quantkit.calibration.lockstep.forward import LockstepForward, read_rows_of
from quantkit.calibration.lockstep.head import Head
from quantkit.calibration.lockstep.losses import exact_math
from quantkit.calibration.lockstep.parameters import empty, fill, stored_names
from quantkit.calibration.lockstep.states import States
from quantkit.calibration.lockstep.stations import Stations
from quantkit.calibration.lockstep.visitors import Visitors
from quantkit.calibration.lockstep.watching import Matrices, Watching, require_finite
from quantkit.calibration.routing import Routing
from quantkit.core.errors import CalibrationError

_MOST_SCORES = 2**29  # bytes of scores for the whole vocabulary, of all chunks together
_AT_ONCE = 1024  # tokens that go through a dense part at once
_MOST_TOLD = 0.99  # of a layer that is not on record yet
_NOBODY = Visitors()
_COPIES = 3  # that are made of a chunk's scores on the way to its losses
_COPIES_BACK = 5  # with gradients: scores, chances, their gradient whole and in part, and a copy


class _EndedError(BaseException):
    """Ends a chunk's way through the model after the last layer."""


def run(
    forward: LockstepForward,
    tokens: NDArray[np.int64],
    states: States,
    finish: Callable[[int, Tensor], None] | None,
    visitors: Visitors = _NOBODY,
    *,
    finish_layer: Callable[[int, Routing | None], None] = lambda _layer, _routing: None,
    resumed: int = 0,
    report: Callable[[float], None] = lambda _: None,
    last: int | None = None,
) -> None:
    """Run a model over chunks of tokens.

    Args:
        forward: the model.
        tokens: shape (chunks, context).
        states: where what layers hand on is kept.
        finish: called with the number of each chunk and its logits, (context or ``last``,
            vocabulary), by several threads; None where nothing after the layers is to be run.
        visitors: who looks on.
        finish_layer: called with the number of a layer when all chunks went through it, and with
            where its tokens went if it has experts.
        resumed: how many layers an earlier run did, whose states are in ``states``.
        report: told how many layers are done, with fractions, by several threads.
        last: how many tokens at the end of a chunk are scored; by default all.

    Raises:
        CalibrationError: an activation is not finite.
        CheckpointError: a weight cannot be read.

    """
    _Run(forward, tokens, states, finish, visitors, finish_layer, resumed, report, last).execute()


class _Run:
    def __init__(
        self,
        forward: LockstepForward,
        tokens: NDArray[np.int64],
        states: States,
        finish: Callable[[int, Tensor], None] | None,
        visitors: Visitors,
        finish_layer: Callable[[int, Routing | None], None],
        resumed: int,
        report: Callable[[float], None],
        last: int | None,
    ) -> None:
        self._forward = forward
        self._tokens = torch.from_numpy(tokens)
        self._used = np.unique(tokens)
        self._states = states
        self._finish = finish
        self._visitors = visitors
        self._finish_layer = finish_layer
        self._resumed = self._done = resumed
        self._report = report
        self._share = 0.0  # of the layer at hand that is done
        self._last = last or tokens.shape[1]
        at_once = torch.get_num_threads() if forward.device.type == "cpu" else 1
        self._chunks = Chunks(len(tokens), at_once)
        self._scratch = states.scratch()
        self._stations = Stations(self._chunks, self._scratch)
        self._heads = self._head_permits()
        self._matrices = Matrices()  # of the layer that is loaded
        self._routing: Routing | None = None  # of that layer
        self._scores: dict[int, Tensor] = {}  # of its routers, by chunk
        self._experts: frozenset[int] = frozenset()  # how many it has
        self._replaced: dict[str, Tensor] = {}  # its parameters that a visitor has come to
        self._latest: dict[int, weakref.ref[Tensor]] = {}  # inputs of these, by chunk
        self._scoring: set[int] = set()
        self._lock = threading.Lock()
        # Modules outside the layers that are loaded, and whether with all rows. Some stay; others
        # go when the next layer comes.
        self._staying: dict[str, nn.Module] = {}
        self._passing: dict[str, nn.Module] = {}
        self._whole: set[str] = set()

    def execute(self) -> None:
        forward = self._forward
        share_heap()
        give_back_freed()
        undo: list[Callable[[], None]] = []
        try:
            undo += [self._stop_at(number, name) for number, name in enumerate(forward.layers)]
            for name, some in forward.experts.items():
                undo.append(some.put(partial(self._meet_experts, name)))
            undo += [read_rows_of(forward, name) for name in forward.tables]
            within = {part for parts in forward.parts.values() for part in parts}
            head = forward.model.get_output_embeddings()
            for name, module in forward.modules.items():
                if module is head and type(module) is nn.Linear:
                    stand_in = self._head(name, module)
                    undo.append(stand_in.put(partial(self._load_head, stand_in)))
                elif name not in within and stored_names({name: module}):
                    hook = module.register_forward_pre_hook(partial(self._load_outside, name))
                    undo.append(hook.remove)
            if head is not None:
                undo.append(head.register_forward_pre_hook(self._enter_head).remove)
            self._load_embeddings()
            with exact_math():
                self._chunks.run(self._run_chunk, self._serve)
        finally:
            for step in reversed(undo):
                step()
            for parts in (self._staying, self._passing, *forward.parts.values()):
                empty(parts)

    def _run_chunk(self, number: int) -> None:
        ids = self._tokens[number : number + 1].to(self._forward.device)
        visitors = self._visitors
        alter = partial(visitors.alter, number) if visitors.alter is not None else None
        prepare = self._prepare if visitors.replacer is not None else None
        try:
            with Watching(self._matrices, self._see, alter, prepare):
                logits = self._forward.scores(ids, self._last)
            require_finite(logits, "the scores of the tokens")
            assert self._finish is not None  # noqa: S101 - else it has ended with the last layer
            self._finish(number, logits[0])
        except _EndedError:
            pass
        finally:
            if number in self._scoring:
                self._scoring.remove(number)
                self._heads.release()

    def _head_permits(self) -> threading.Semaphore:
        """How many chunks may have scores for the whole vocabulary at once."""
        vocabulary = int(self._forward.model.config.get_text_config().vocab_size)
        scored = self._last if self._forward.keeps_last else self._tokens.shape[1]
        copies = _COPIES if self._visitors.keeper is None else _COPIES_BACK
        one = copies * 4 * scored * vocabulary
        return threading.Semaphore(max(1, _MOST_SCORES // one))

    def _enter_head(self, _module: nn.Module, _inputs: Any) -> None:
        if (number := self._chunks.number) not in self._scoring:
            self._heads.acquire()
            self._scoring.add(number)

    def _head(self, name: str, module: nn.Linear) -> Head:
        keeper, parameters = self._visitors.keeper, self._forward.parameters
        if keeper is None:
            return Head(name, module, parameters)
        return Head(
            name, module, parameters, lambda: partial(keeper.see_scores, self._chunks.number)
        )

    def _load_head(self, head: Head) -> None:
        with self._lock:
            head.load()

    def _stop_at(self, number: int, name: str) -> Callable[[], None]:
        """All chunks wait for each other before and after a layer."""
        layer = self._forward.modules[name]
        own, keeper = layer.forward, self._visitors.keeper
        is_last = number == len(self._forward.layers) - 1

        def forward(*args: Any, **kwargs: Any) -> Any:
            chunk = self._chunks.number
            if number < self._resumed:
                self._end_with(number)
                return self._states.restore(chunk, kwargs)
            self._chunks.meet(("before", name), None)
            if keeper is not None:
                keeper.enter(number, chunk, args, kwargs)
            out = self._stations.run(partial(own, *args, **kwargs))
            require_finite(out, f"what layer {self._done} gives ({name})")
            out = self._states.put(chunk, out, kwargs)
            if not self._experts:
                self._tell(1 / self._tokens.shape[0])
            self._chunks.meet(("after", name), None)
            self._end_with(number)
            return keeper.leave(chunk, out) if keeper is not None and is_last else out

        layer.forward = forward
        return lambda: delattr(layer, "forward")

    def _end_with(self, number: int) -> None:
        """Go no further than the last layer if nobody asks for what comes of it."""
        if self._finish is None and number == len(self._forward.layers) - 1:
            raise _EndedError

    def _tell(self, share: float) -> None:
        """Report that so much more of the layer is done."""
        with self._lock:
            self._share = min(self._share + share, _MOST_TOLD)
            self._report(self._done + self._share)

    def _meet_experts(self, name: str, *call: Tensor) -> Tensor:
        result: Tensor = self._stations.meet(("experts", name), call)
        return result

    def _prepare(self, parameter: str, x: Tensor, matrix: Tensor) -> None:
        """Have a matrix replaced before it is multiplied by, once all chunks have come to it."""
        replacer = self._visitors.replacer
        assert replacer is not None  # noqa: S101 - or nobody would call
        if not replacer.wants(parameter):
            return
        number = self._chunks.number
        latest = self._latest.get(number)
        is_same = latest is not None and latest() is x
        self._latest[number] = weakref.ref(x)
        self._replaced.setdefault(parameter, matrix)
        brought = () if is_same else (x.reshape(-1, x.shape[-1]),)
        self._stations.meet(("matrix", parameter), brought, once=True)

    def _serve(self, station: Any, values: list[Any]) -> Sequence[Any]:
        """Do what is to be done once for all chunks."""
        place, name = station
        forward = self._forward
        if place == "experts":
            layer = forward.layers[self._done]
            reads_again = self._visitors.replacer is None
            if reads_again:  # while experts take memory, the rest of the layer lets go of it
                self._empty_layer(layer, but=name)
            results = self._run_experts(name, values)
            if reads_again:
                self._fill_layer(layer)
            return results
        if place == "matrix":
            self._replace(name, values)
            if self._scratch is not None:
                self._scratch.drop(station)
            return [None] * len(values)
        parts = forward.parts[name]
        if place == "before":
            if self._done >= len(forward.layers) or name != forward.layers[self._done]:
                raise CalibrationError(
                    f"{type(forward.model).__name__} runs its layers more than once or in another "
                    "order than they are stored in; quantkit cannot stream it."
                )
            empty(self._passing)
            self._passing = {}
            self._fill_layer(name)
            self._experts = frozenset(
                forward.experts[part].count for part in parts if part in forward.experts
            )
        else:
            self._empty_layer(name)
            self._replaced.clear()
            self._scores.clear()
            routing, self._routing = self._routing, None
            self._finish_layer(self._done, routing)
            self._done, self._share = self._done + 1, 0.0
            self._report(self._done)
        return values

    def _fill_layer(self, name: str) -> None:
        loaded = self._forward.parameters.load(self._forward.dense(name))
        fill(self._forward.parts[name], loaded)
        self._matrices.put(loaded)

    def _empty_layer(self, name: str, but: str | None = None) -> None:
        """Let go of a layer's parameters, except those of a module and within it."""
        self._matrices.put({})
        parts = self._forward.parts[name]
        if but is not None:
            parts = {
                part: module
                for part, module in parts.items()
                if part != but and not part.startswith(f"{but}.")
            }
        empty(parts)

    def _replace(self, parameter: str, values: Sequence[tuple[Tensor, ...]]) -> None:
        """Write over a matrix with what the visitor makes of it."""
        replacer, matrix = self._visitors.replacer, self._replaced[parameter]
        assert replacer is not None  # noqa: S101 - or nobody would have come
        if values[0]:  # else the inputs are those of the matrix before
            replacer.take_in(((x, 1.0) for (x,) in values), matrix.shape[1], parameter)
        matrix.copy_(replacer.replace(parameter, None, matrix))

    def _run_experts(self, name: str, values: Sequence[tuple[Tensor, ...]]) -> Sequence[Tensor]:
        forward, visitors, scratch = self._forward, self._visitors, self._scratch
        dispatch = Dispatch(
            forward.experts[name],
            lambda matrix, expert: forward.expert(f"{name}.{matrix}", expert),
            partial(self._see_expert, name),
            name=name,
            replacer=visitors.replacer,
            alter=visitors.alter,
            fewest=visitors.fewest_tokens,
        )
        if forward.experts[name].are_alone:
            alone = dispatch.run_alone(values)
            if scratch is not None:
                scratch.drop(("experts", name))
            return alone
        calls = [
            Call(hidden, index, weights, self._scores.get(number))
            for number, (hidden, index, weights) in enumerate(values)
        ]
        each, width = calls[0].hidden.shape
        shape = (each * len(calls), width)
        result = (
            torch.zeros(shape, device=forward.device) if scratch is None else scratch.zeros(shape)
        )
        routing = dispatch.run(calls, result, self._tell)
        self._routing = self._routing or routing
        if visitors.merger is not None:
            inputs = Rows([call.hidden for call in calls])
            dense = visitors.merger(self._done, inputs, result, routing)
            for start in range(0, len(result), _AT_ONCE):
                cut = slice(start, start + _AT_ONCE)
                result[cut] = dense(inputs[cut])
        if scratch is not None:
            scratch.drop(("experts", name))
        parts: Sequence[Tensor] = result.split(each)
        return parts

    def _load_embeddings(self) -> None:
        """Load what tokens become, for the whole run: some models ask where it lies."""
        module = self._forward.model.get_input_embeddings()
        for name, other in self._forward.modules.items():
            if other is module and isinstance(module, nn.Embedding):
                self._load_rows(name, module)
                self._staying[name] = module

    def _load_rows(self, name: str, module: nn.Embedding) -> None:
        weight = f"{name}.weight"
        fill({name: module}, {weight: self._forward.parameters.table(weight, self._used)})

    def _load_outside(self, name: str, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        """Load a module outside the layers when it is called."""
        with self._lock:
            if name in self._staying or name in self._whole & self._passing.keys():
                return
            if isinstance(module, nn.Embedding) and self._are_tokens(inputs):
                if name not in self._passing:
                    self._load_rows(name, module)
                    self._whole.discard(name)
            else:
                parts = {name: module}
                fill(parts, self._forward.parameters.load(stored_names(parts)))
                self._whole.add(name)
            holds_layers = self._forward.layers[0].startswith(f"{name}." if name else "")
            (self._staying if holds_layers else self._passing)[name] = module

    def _are_tokens(self, inputs: tuple[Any, ...]) -> bool:
        """Whether an embedding is asked for nothing but tokens of the text."""
        return len(inputs) == 1 and bool(np.isin(inputs[0].cpu().numpy(), self._used).all())

    def _see(self, name: str, expert: int | None, x: Tensor, out: Tensor) -> None:
        if not self._stations.is_new():
            return
        require_finite(out, f"what {name} makes of its inputs in layer {self._done}")
        number = self._chunks.number
        if self._visitors.fewest_tokens and out.shape[-1] in self._experts:
            self._scores[number] = out.reshape(-1, out.shape[-1])
        if self._visitors.watcher is not None:
            x = x.reshape(-1, x.shape[-1])
            self._visitors.watcher.observe(name, expert, number, x)

    def _see_expert(self, name: str, matrix: str, expert: int, x: Tensor, share: float) -> None:
        require_finite(
            x, f"what goes into {name}.{matrix} of expert {expert} in layer {self._done}"
        )
        if self._visitors.watcher is not None:
            self._visitors.watcher.observe(f"{name}.{matrix}", expert, None, x, share)
