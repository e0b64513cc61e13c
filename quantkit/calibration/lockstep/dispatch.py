"""The experts of a layer over the tokens of all chunks: one expert after the other."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from quantkit.calibration.lockstep.experts import Call, Experts
from quantkit.calibration.lockstep.watching import Replacer
from quantkit.calibration.routing import Routing

_BATCH = 512  # tokens that an expert sees at once
_BORROWED_WEIGHT = 4  # a borrowed token counts as a quarter of one of the expert's own


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
        self._experts.add_rest(calls, result.split(len(calls[0].hidden)))
        return Routing(tuple(tokens), tuple(borrowed), tuple(squares))

    def run_alone(self, calls: Sequence[tuple[Tensor, ...]]) -> list[Tensor]:
        """What experts that are one matrix each make of the rows that are sorted by them already.

        A call is the rows of a chunk, (tokens, columns), and how many of them each expert has.
        """
        (name,) = self._experts.into
        parts = [x.split(sizes.tolist()) for x, sizes in calls]
        made: list[list[Tensor]] = [[] for _ in calls]
        for expert in range(self._experts.count):
            own = [part[expert] for part in parts]
            if self._alter is not None:
                own = [self._alter(number, x) for number, x in enumerate(own)]
            some = torch.cat(own)
            if not len(some) and self._replacer is None:
                continue
            (matrix,) = self._settle((name,), expert, partial(iter, [(some, 1.0)]))
            if len(some):
                self._see(name, expert, some, 1.0)
            for rows, x in zip(made, own, strict=True):
                rows.append(self._experts.multiply(name, x, matrix, expert))
        return [torch.cat(rows) for rows in made]

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
        if n_tokens <= hidden.width:
            kept = [first(batch) for batch in batches]
            into.clear()

        def inputs_of_down() -> Iterator[tuple[Tensor, float]]:
            for number, batch in enumerate(batches):
                yield kept[number] if kept else inner(batch, rows(batch)), batch.share

        (down,) = self._settle((experts.down,), expert, inputs_of_down)
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
                is_transposed = self._experts.is_transposed(name)
                turned = matrix.T if is_transposed else matrix
                if not matrices:
                    self._replacer.take_in(inputs(), turned.shape[1], full)
                turned = self._replacer.replace(full, expert, turned)
                matrix = turned.T if is_transposed else turned
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
