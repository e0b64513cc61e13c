"""The experts of a layer over the tokens of all chunks: one expert after the other."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from quantkit.calibrate.lockstep.watching import Replacer
from quantkit.calibrate.routing import Routing

_BATCH = 512  # tokens that an expert sees at once
_BORROWED_WEIGHT = 4  # a borrowed token counts as a quarter of one of the expert's own


class Experts(Protocol):
    """What is to be known of a module of experts."""

    @property
    def count(self) -> int:
        """How many there are."""

    @property
    def into(self) -> Sequence[str]:
        """The parameters for what comes in."""

    @property
    def down(self) -> str:
        """The parameter for what goes out."""

    @property
    def are_weighed_first(self) -> bool:
        """Whether the router's weights are for what comes in, not for what goes out."""

    @property
    def is_transposed(self) -> bool:
        """Whether matrices have their inputs along the first axis."""

    def multiply(self, name: str, x: Tensor, weight: Tensor, expert: int) -> Tensor:
        """The product with a matrix, and its bias."""

    def gate(self, made: Sequence[Tensor]) -> Tensor:
        """What the matrices in ``into`` made, put together."""

    def finish(self, made: Tensor) -> Tensor:
        """What an expert gives, before it is weighed."""


@dataclass(frozen=True, slots=True)
class Call:
    """What a chunk comes with to its experts.

    ``hidden`` are their inputs, (tokens, hidden); ``index`` the experts chosen for each token and
    ``weights`` theirs, (tokens, k); ``scores`` the router's for all experts, None if nobody asks.
    """

    hidden: Tensor
    index: Tensor
    weights: Tensor
    scores: Tensor | None = None


class Rows:
    """Tensors of all chunks as one, that is never put together: rows of any of them."""

    def __init__(self, parts: Sequence[Tensor]) -> None:
        self._parts = parts
        self._each = len(parts[0])
        self.width = parts[0].shape[1]

    def __len__(self) -> int:
        return self._each * len(self._parts)

    def __getitem__(self, rows: slice | Tensor) -> Tensor:
        tokens = rows
        if isinstance(rows, slice):
            where = self._parts[0].device
            tokens = torch.arange(*rows.indices(len(self)), device=where)
        return torch.cat([self._parts[n][own] for n, own in self.split(tokens)] or self.none())

    def none(self) -> list[Tensor]:
        """No rows."""
        return [self._parts[0][:0]]

    def split(self, tokens: Tensor) -> Iterator[tuple[int, Tensor]]:
        """Numbers of chunks, and which of its own tokens each has among ascending ones."""
        owners = tokens // self._each
        counts = torch.bincount(owners, minlength=len(self._parts)).tolist()
        for number, own in enumerate(tokens.split(counts)):
            if len(own):
                yield number, own - number * self._each


@dataclass(frozen=True, slots=True)
class _Batch:
    """Tokens that an expert sees at once; borrowed ones, without gates, leave no trace."""

    tokens: Tensor
    gates: Tensor | None
    share: float = 1.0


class Dispatch:
    """A layer's experts at work, with the matrices of one in memory."""

    def __init__(
        self,
        experts: Experts,
        read: Callable[[str, int], Tensor],
        see: Callable[[str, int, Tensor, float], None],
        *,
        name: str = "",
        replacer: Replacer | None = None,
        alter: Callable[[int, Tensor], Tensor] | None = None,
        fewest: int = 0,
    ) -> None:
        """Prepare.

        Args:
            experts: of the layer.
            read: gives the matrix of a parameter and an expert.
            see: shown the inputs of each, and how much a token of them counts.
            name: of the module, for its parameters.
            replacer: makes other matrices of them.
            alter: gives other inputs instead of a chunk's.
            fewest: an expert with fewer tokens is shown others'.

        """
        self._experts = experts
        self._read = read
        self._see = see
        self._name = name
        self._replacer = replacer
        self._alter = alter
        self._fewest = fewest

    def run(self, calls: Sequence[Call], result: Tensor, tell: Callable[[float], None]) -> Routing:
        """Add what the experts make of all tokens to ``result``, shape (tokens, hidden).

        They are added up in the experts' order, as the modules' own forward does. ``tell`` is told
        each share of the work that is done.
        """
        hidden = Rows([call.hidden for call in calls])
        index = torch.cat([call.index for call in calls])
        weights = torch.cat([call.weights for call in calls])
        scores = None
        if calls[0].scores is not None and self._fewest:
            scores = torch.softmax(torch.cat([call.scores for call in calls]), -1)
        tokens, borrowed, squares = [], [], []
        for expert in range(self._experts.count):
            own, place = torch.where(index == expert)
            gates = weights[own, place]
            extra = self._borrow(expert, own, scores)
            tokens.append(len(own))
            borrowed.append(len(extra))
            squares.append(float(gates.double().square().sum()))
            batches = _cut(own, gates)
            if len(extra):
                # A whole number of tokens' weight, because counts of an imatrix are whole.
                mass = -(-len(extra) // _BORROWED_WEIGHT)
                batches += _cut(extra, None, mass / len(extra))
            if batches or self._replacer is not None:
                self._run_one(expert, batches, hidden, result)
            tell(len(own) / index.numel())
        return Routing(tuple(tokens), tuple(borrowed), tuple(squares))

    def _borrow(self, expert: int, own: Tensor, scores: Tensor | None) -> Tensor:
        """Tokens of other experts for one that has too few: those its router score is best for."""
        wanted = 0 if scores is None else min(self._fewest, len(scores)) - len(own)
        if scores is None or wanted <= 0:
            return own[:0]
        column = scores[:, expert].clone()
        column[own] = -1
        return column.topk(wanted).indices.sort().values

    def _run_one(
        self, expert: int, batches: Sequence[_Batch], hidden: Rows, result: Tensor
    ) -> None:
        experts = self._experts

        def rows(batch: _Batch) -> Tensor:
            x = hidden[batch.tokens]
            if experts.are_weighed_first and batch.gates is not None:
                x = x * batch.gates[:, None]
            return self._altered(hidden, batch, x)

        def inner(batch: _Batch, x: Tensor) -> Tensor:
            made = [
                experts.multiply(name, x, matrix, expert)
                for name, matrix in zip(experts.into, into, strict=True)
            ]
            return self._altered(hidden, batch, experts.gate(made))

        def first(batch: _Batch) -> Tensor:
            x = rows(batch)
            for name in experts.into:
                self._see(name, expert, x, batch.share)
            x = inner(batch, x)
            self._see(experts.down, expert, x, batch.share)
            return x

        into = self._settle(experts.into, expert, lambda: ((rows(b), b.share) for b in batches))
        # For fewer tokens than a matrix has columns, what comes out of it is smaller than it.
        n_tokens = sum(len(batch.tokens) for batch in batches)
        kept: list[Tensor] = []
        if self._replacer is None and n_tokens <= hidden.width:
            kept = [first(batch) for batch in batches]
            into.clear()
        (down,) = self._settle(
            (experts.down,), expert, lambda: ((inner(b, rows(b)), b.share) for b in batches)
        )
        for number, batch in enumerate(batches):
            x = kept[number] if kept else first(batch)
            if batch.gates is None:
                continue
            made = experts.finish(experts.multiply(experts.down, x, down, expert))
            if not experts.are_weighed_first:
                made = made * batch.gates[:, None]
            result.index_add_(0, batch.tokens, made.to(result.dtype))

    def _settle(
        self,
        names: Sequence[str],
        expert: int,
        inputs: Callable[[], Iterator[tuple[Tensor, float]]],
    ) -> list[Tensor]:
        """Matrices with the same inputs, replaced where somebody does that."""
        matrices: list[Tensor] = []
        for name in names:
            matrix = self._read(name, expert)
            full = f"{self._name}.{name}"
            if self._replacer is not None and self._replacer.wants(full):
                turned = matrix.T if self._experts.is_transposed else matrix
                if not matrices:
                    self._replacer.take_in(inputs(), turned.shape[1], full)
                turned = self._replacer.replace(full, expert, turned)
                matrix = turned.T if self._experts.is_transposed else turned
            matrices.append(matrix)
        return matrices

    def _altered(self, hidden: Rows, batch: _Batch, x: Tensor) -> Tensor:
        if self._alter is None:
            return x
        parts = [(number, len(own)) for number, own in hidden.split(batch.tokens)]
        cut = x.split([length for _, length in parts])
        return torch.cat([self._alter(n, part) for (n, _), part in zip(parts, cut, strict=True)])


def _cut(tokens: Tensor, gates: Tensor | None, share: float = 1.0) -> list[_Batch]:
    cuts = [slice(start, start + _BATCH) for start in range(0, len(tokens), _BATCH)]
    return [_Batch(tokens[cut], None if gates is None else gates[cut], share) for cut in cuts]


class Streamed:
    """`Experts` of a module that asks transformers for a function to run them."""

    down = "down_proj"
    are_weighed_first = False

    def __init__(self, module: Any) -> None:
        self._module = module
        self.count: int = module.num_experts
        self.into = ("gate_up_proj" if module.has_gate else "up_proj",)
        self.is_transposed: bool = module.is_transposed

    def multiply(self, name: str, x: Tensor, weight: Tensor, expert: int) -> Tensor:
        """The product with a matrix, and its bias."""
        module = self._module
        bias = getattr(module, f"{name}_bias")[expert] if module.has_bias else None
        if not module.is_transposed:
            return torch.nn.functional.linear(x, weight, bias)
        made = x @ weight
        return made if bias is None else made + bias

    def gate(self, made: Sequence[Tensor]) -> Tensor:
        """What the matrix for what comes in made, gated or activated."""
        module = self._module
        result: Tensor = module._apply_gate(*made) if module.has_gate else module.act_fn(*made)
        return result

    def finish(self, made: Tensor) -> Tensor:
        """What an expert gives, before it is weighed."""
        module = self._module
        result: Tensor = module.post_expert_norm(made) if module.has_post_expert_norm else made
        return result
