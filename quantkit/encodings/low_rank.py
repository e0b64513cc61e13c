"""How columns make up for each other where few tokens were seen: no matrix of all columns.

Of the n inputs X of a matrix, (tokens, n), GPTQ needs M with M Mᵀ = XᵀX + λ I, upper triangular
(`quantkit.encodings.compensation`). For far fewer tokens than columns, M is got in blocks of
columns, from the last to the first. With F the columns after block J and K = X_F X_Fᵀ + λ I,
(tokens, tokens), the Woodbury identity gives

    M_JJ M_JJᵀ = λ (I + X_Jᵀ K⁻¹ X_J),    M_IJ = X_Iᵀ λ K⁻¹ X_J M_JJ⁻ᵀ    for columns I before J.

Nothing is subtracted, so it is as exact as the whole factor. Errors are carried by what they add
to the outputs of the tokens, X_I e_I summed over the blocks: 4 tokens multiplications for each
weight, instead of its columns.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from quantkit.encodings.compensation import (
    factorize,
    lower_half,
    mean_of_seen,
    more_damping,
    order_of,
)

FEWER = 4  # times as many columns as tokens, at least: else the whole factor costs less


@dataclass(frozen=True, slots=True)
class LowRankCompensation:
    """A `Compensation` by tokens.

    ``inputs`` and ``answers`` are (columns, tokens): X, and what is λ K⁻¹ X_J M_JJ⁻ᵀ above, divided
    by the diagonal of M. ``blocks`` are the factors within each ``step`` columns.
    """

    inputs: Tensor
    answers: Tensor
    blocks: tuple[Tensor, ...]
    step: int
    costs: Tensor
    order: Tensor | None

    def within(self, columns: slice) -> Tensor:
        """Factors by which these columns move each other; they are of one step."""
        number, start = divmod(columns.start, self.step)
        inside = slice(start, start + columns.stop - columns.start)
        return self.blocks[number][inside, inside]

    def begin(self, rows: int) -> Tensor:
        """What errors add to each token's outputs, (tokens, rows): nothing yet."""
        return self.inputs.new_zeros(self.inputs.shape[1], rows)

    def carry(self, errors: Tensor, columns: slice, moved: Tensor, memory: Tensor) -> None:
        """Move the columns of the next step by the errors of all before it."""
        if columns.stop == len(moved):
            return
        memory.addmm_(self.inputs[columns].T, errors)
        following = slice(columns.stop, columns.stop + self.step)
        moved[following].addmm_(self.answers[following], memory)


def prepare_low_rank(
    inputs: Tensor, step: int, *, act_order: bool = False, damp: float = 0.01
) -> LowRankCompensation:
    """What matrices with the same few inputs share: `compensation.prepare` of inputs ᵀ inputs.

    Args:
        inputs: (tokens, columns), up to a factor.
        step: how many columns are rounded before their errors are carried to the rest.
        act_order: round the columns with the strongest inputs first.
        damp: added to the diagonal, as a share of its mean; 10 times as much where float32 cannot
            tell its numbers apart, and so on.

    """
    strength = inputs.square().sum(0)
    order = order_of(strength) if act_order else None
    mean = mean_of_seen(strength)
    turned = (inputs if order is None else inputs.index_select(1, order)).T.contiguous()
    unseen = (strength if order is None else strength[order]) == 0
    damp *= mean
    while (found := _factorize(turned, step, damp, unseen * mean)) is None:
        damp = more_damping(damp, mean)
    answers, blocks, costs = found
    return LowRankCompensation(turned, answers, blocks, step, costs, order)


def _factorize(
    inputs: Tensor, step: int, damp: float, added: Tensor
) -> tuple[Tensor, tuple[Tensor, ...], Tensor] | None:
    """Answers, blocks and costs of inputs, (columns, tokens); None where it takes more damping.

    ``added`` is what the diagonal has besides.
    """
    columns, tokens = inputs.shape
    gram = torch.eye(tokens, device=inputs.device) * damp
    answers, costs = torch.empty_like(inputs), torch.empty_like(added)
    blocks = []
    for start in reversed(range(0, columns, step)):
        here = slice(start, min(start + step, columns))
        lower, failed = torch.linalg.cholesky_ex(gram)
        if failed or not torch.isfinite(lower.diagonal()).all():
            return None
        half = torch.linalg.solve_triangular(lower, inputs[here].T, upper=False)
        moment = (half.T @ half).mul_(damp)
        moment.diagonal().add_(added[here])
        factor, costs[here] = factorize(moment.flip(0, 1), damp)
        back = torch.linalg.solve_triangular(lower.T, half, upper=True).T
        torch.linalg.solve_triangular(
            factor, back, upper=True, unitriangular=True, out=answers[here]
        ).mul_(damp / costs[here, None])
        some = inputs[here]
        for rows, left in lower_half(tokens, step):  # which is all that is factorized
            gram[rows, left].addmm_(some[:, rows].T, some[:, left])
        blocks.append(factor)
    return answers, tuple(reversed(blocks)), costs
