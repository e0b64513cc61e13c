"""One run of a model over chunks of text: all go through a layer before the next is read."""

import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import embedding

from quantkit.build.heap import give_back_freed
from quantkit.calibrate.forward import exact_math
from quantkit.calibrate.lockstep.chunks import Chunks
from quantkit.calibrate.lockstep.forward import LockstepForward
from quantkit.calibrate.lockstep.head import Head
from quantkit.calibrate.lockstep.parameters import empty, fill, stored_names
from quantkit.calibrate.lockstep.states import States
from quantkit.calibrate.lockstep.watching import (
    Matrices,
    Watcher,
    Watching,
    require_finite,
)
from quantkit.core.errors import CalibrationError

_MOST_SCORES = 2**29  # bytes of scores for the whole vocabulary, of all chunks together
_COPIES = 3  # that are made of a chunk's scores on the way to its losses


def run(
    forward: LockstepForward,
    tokens: NDArray[np.int64],
    states: States,
    finish: Callable[[int, Tensor], None],
    *,
    watcher: Watcher | None = None,
    finish_layer: Callable[[int], None] = lambda _: None,
    resumed: int = 0,
    alter: Callable[[int, Tensor], Tensor] | None = None,
    last: int | None = None,
) -> None:
    """Run a model over chunks of tokens.

    Args:
        forward: the model.
        tokens: shape (chunks, context).
        states: where what layers hand on is kept.
        finish: called with the number of each chunk and its logits, (context or ``last``,
            vocabulary), by several threads.
        watcher: sees what goes into the matrices of the layers.
        finish_layer: called with the number of a layer when all chunks went through it.
        resumed: how many layers an earlier run did, whose states are in ``states``.
        alter: gives, of the number of a chunk and what goes into a matrix of a layer, what is to
            go into it instead.
        last: how many tokens at the end of a chunk are scored; by default all.

    Raises:
        CalibrationError: an activation is not finite.
        CheckpointError: a weight cannot be read.

    """
    give_back_freed()
    _Run(forward, tokens, states, finish, watcher, finish_layer, resumed, alter, last).execute()


class _Run:
    def __init__(
        self,
        forward: LockstepForward,
        tokens: NDArray[np.int64],
        states: States,
        finish: Callable[[int, Tensor], None],
        watcher: Watcher | None,
        finish_layer: Callable[[int], None],
        resumed: int,
        alter: Callable[[int, Tensor], Tensor] | None,
        last: int | None,
    ) -> None:
        self._forward = forward
        self._tokens = torch.from_numpy(tokens)
        self._used = np.unique(tokens)
        self._states = states
        self._finish = finish
        self._watcher = watcher
        self._finish_layer = finish_layer
        self._resumed = self._done = resumed
        self._alter = alter
        self._last = last or tokens.shape[1]
        at_once = torch.get_num_threads() if forward.device.type == "cpu" else 1
        self._chunks = Chunks(len(tokens), at_once)
        self._heads = self._head_permits()
        self._matrices = Matrices()  # of the layer that is loaded
        self._scoring: set[int] = set()
        self._lock = threading.Lock()
        # Modules outside the layers that are loaded, and whether with all rows. Some stay; others
        # go when the next layer comes.
        self._staying: dict[str, nn.Module] = {}
        self._passing: dict[str, nn.Module] = {}
        self._whole: set[str] = set()

    def execute(self) -> None:
        forward = self._forward
        undo: list[Callable[[], None]] = []
        try:
            undo += [self._stop_at(number, name) for number, name in enumerate(forward.layers)]
            for name, some in forward.experts.items():
                undo.append(some.put(partial(self._meet_experts, name)))
            undo += [self._read_rows_of(name, module) for name, module in forward.tables.items()]
            within = {part for parts in forward.parts.values() for part in parts}
            head = forward.model.get_output_embeddings()
            for name, module in forward.modules.items():
                if module is head and type(module) is nn.Linear:
                    stand_in = Head(name, module, forward.parameters)
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
        alter = partial(self._alter, number) if self._alter is not None else None
        try:
            with Watching(self._matrices, self._see, alter):
                logits = self._forward.scores(ids, self._last)
            require_finite(logits, "the scores of the tokens")
            self._finish(number, logits[0])
        finally:
            if number in self._scoring:
                self._scoring.remove(number)
                self._heads.release()

    def _head_permits(self) -> threading.Semaphore:
        """How many chunks may have scores for the whole vocabulary at once."""
        vocabulary = int(self._forward.model.config.get_text_config().vocab_size)
        scored = self._last if self._forward.keeps_last else self._tokens.shape[1]
        one = _COPIES * 4 * scored * vocabulary
        return threading.Semaphore(max(1, _MOST_SCORES // one))

    def _enter_head(self, _module: nn.Module, _inputs: Any) -> None:
        if (number := self._chunks.number) not in self._scoring:
            self._heads.acquire()
            self._scoring.add(number)

    def _load_head(self, head: Head) -> None:
        with self._lock:
            head.load()

    def _stop_at(self, number: int, name: str) -> Callable[[], None]:
        """All chunks wait for each other before and after a layer."""
        layer = self._forward.modules[name]
        own = layer.forward

        def forward(*args: Any, **kwargs: Any) -> Any:
            chunk = self._chunks.number
            if number < self._resumed:
                return self._states.restore(chunk, kwargs)
            self._chunks.meet(("before", name), None)
            out = own(*args, **kwargs)
            require_finite(out, f"what layer {self._done} gives ({name})")
            out = self._states.put(chunk, out, kwargs)
            self._chunks.meet(("after", name), None)
            return out

        layer.forward = forward
        return lambda: delattr(layer, "forward")

    def _read_rows_of(self, name: str, module: nn.Embedding) -> Callable[[], None]:
        """An embedding within a layer is read by the rows that are asked for."""

        def forward(index: Tensor) -> Tensor:
            used = np.unique(index.cpu().numpy())
            return embedding(index, self._forward.parameters.table(f"{name}.weight", used))

        module.forward = forward
        return lambda: delattr(module, "forward")

    def _meet_experts(self, name: str, *call: Tensor) -> Tensor:
        result: Tensor = self._chunks.meet(("experts", name), call)
        return result

    def _serve(self, station: Any, values: list[Any]) -> Sequence[Any]:
        """Do what is to be done once for all chunks."""
        place, name = station
        forward = self._forward
        if place == "experts":
            return forward.experts[name].run(
                values,
                lambda matrix, expert: forward.expert(f"{name}.{matrix}", expert),
                partial(self._see_expert, name),
                self._alter,
            )
        parts = forward.parts[name]
        if place == "before":
            if self._done >= len(forward.layers) or name != forward.layers[self._done]:
                raise CalibrationError(
                    f"{type(forward.model).__name__} runs its layers more than once or in another "
                    "order than they are stored in; quantkit cannot stream it."
                )
            empty(self._passing)
            self._passing = {}
            loaded = forward.parameters.load(forward.dense(name))
            fill(parts, loaded)
            self._matrices.put(loaded)
        else:
            self._matrices.put({})
            empty(parts)
            self._finish_layer(self._done)
            self._done += 1
        return values

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
        require_finite(out, f"what {name} makes of its inputs in layer {self._done}")
        if self._watcher is not None:
            x = x.reshape(-1, x.shape[-1])
            self._watcher.observe(name, expert, self._chunks.number, x)

    def _see_expert(self, name: str, matrix: str, expert: int, x: Tensor) -> None:
        require_finite(
            x, f"what goes into {name}.{matrix} of expert {expert} in layer {self._done}"
        )
        if self._watcher is not None:
            self._watcher.observe(f"{name}.{matrix}", expert, None, x)
