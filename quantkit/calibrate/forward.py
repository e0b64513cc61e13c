"""The forward pass of a decoder, one layer over all tokens before the next layer is read.

Written out here instead of taken from transformers, whose Mixtral holds all experts of a layer as
one parameter: a visitor has to see what each expert's matrices get, and one matrix at a time is
enough to have in memory. Tests hold it to transformers' logits.

All arithmetic is float32. The weights are bfloat16 as a rule and widen exactly; what float32 adds
over bfloat16 arithmetic is that a router's near ties fall as they do in llama.cpp, and that sums
of squares over 100,000 tokens keep their digits.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import linear, scaled_dot_product_attention, silu

from quantkit.calibrate.activations import Activations
from quantkit.calibrate.rotary import rotary_angles
from quantkit.calibrate.routing import Routing
from quantkit.calibrate.weights import Weights
from quantkit.core.errors import CalibrationError

QKV = ("attn_q", "attn_k", "attn_v")
_BATCH = 1024  # tokens that an expert sees at once
_SCORED_AT_ONCE = 32  # tokens
_BORROWED_WEIGHT = 4  # a borrowed token counts as a quarter of one of the expert's own


@dataclass(frozen=True, slots=True)
class Site:
    """A place in a layer whose input goes into one or more matrices: their roles."""

    layer: int
    roles: tuple[str, ...]
    expert: int | None = None


class Visitor(Protocol):
    """Sees what goes into a layer's matrices, and may replace them.

    Where it ``replaces``, it is shown all inputs of a site, then asked for other weights, and the
    pass goes on with those: what comes after is computed from what was replaced before. Otherwise
    it is shown the inputs on the way.
    """

    @property
    def replaces(self) -> bool:
        """Whether ``replace`` is called."""

    def observe(self, site: Site, inputs: Tensor, share: float) -> None:
        """Take in some inputs of a site, shape (tokens, columns), each with this weight."""

    def replace(self, site: Site, weights: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Other matrices for a site, all of whose inputs have been observed."""


class Merger(Protocol):
    """Makes one dense part of a layer's experts, with which the pass then goes on."""

    def __call__(
        self, layer: int, inputs: Tensor, outputs: Tensor, routing: Routing
    ) -> Callable[[Tensor], Tensor]:
        """The dense part as a function of rows of inputs, on the device.

        Args:
            layer: its number.
            inputs: what the experts get, shape (tokens, hidden), in main memory or on disk.
            outputs: what they make of it together; the same shape.
            routing: where the tokens went.

        """


@dataclass(frozen=True, slots=True)
class _Batch:
    """Tokens that one expert sees at once, by index; borrowed ones leave no trace downstream."""

    tokens: Tensor
    gates: Tensor | None = None
    share: float = 1.0
    borrowed: bool = False


_Batches: TypeAlias = list[_Batch]
_Inputs: TypeAlias = Callable[[], Iterable[tuple[Tensor, float]]]


class Forward:
    """A model that is run layer by layer over the activations of all chunks."""

    def __init__(
        self,
        weights: Weights,
        context: int,
        *,
        fewest_tokens: int = 0,
    ) -> None:
        """Prepare to run a model.

        Args:
            weights: where matrices come from.
            context: tokens per chunk.
            fewest_tokens: an expert with fewer is shown others' tokens, at a lower weight.

        Raises:
            CalibrationError: the model cannot be run, or not over so many tokens at once.

        """
        self.weights = weights
        self.hparams = weights.model.hparams
        self.device = weights.device
        self.merger: Merger | None = None
        self._fewest = fewest_tokens
        if context > self.hparams.max_position_embeddings:
            raise CalibrationError(
                f"--context {context} is more than the {self.hparams.max_position_embeddings} "
                "tokens that config.json gives the model; choose a smaller one."
            )
        rope = self.hparams.rope
        angles = rotary_angles(rope, self.hparams.head_dim, context)
        self._cos = (angles.cos() * rope.magnitude).to(self.device)
        self._sin = (angles.sin() * rope.magnitude).to(self.device)
        self._mask = _window_mask(context, self.hparams.sliding_window, self.device)

    def advance(
        self,
        layer: int,
        states: Activations,
        visitor: Visitor,
        report: Callable[[float], None] = lambda _: None,
    ) -> Routing | None:
        """Run one layer: ``states.hidden`` in, ``states.out`` out. The routing, if it has any.

        Args:
            layer: its number.
            states: of all chunks; ``states.middle`` is scratch space.
            visitor: sees the inputs of every matrix.
            report: told the share of the layer that is done.

        Raises:
            CalibrationError: an activation is not finite.

        """
        with exact_math():
            run = _Layer(self, layer, states, visitor, report)
            run.attend()
            return run.feed_forward() if self.merger is None else run.merge(self.merger)

    def perplexity(self, states: Activations, tokens: NDArray[np.int64]) -> float:
        """Perplexity over the second half of each chunk, as llama-perplexity has it.

        ``states.hidden`` must be what the last layer left.
        """
        return math.exp(self.losses(states, tokens).mean())

    def losses(self, states: Activations, tokens: NDArray[np.int64]) -> NDArray[np.float64]:
        """Minus the log-probability of each token in the second half of each chunk, 1-D."""
        with exact_math():
            pairs = zip(self.logits(states), tokens, strict=True)
            return np.concatenate([losses_of(logits, chunk) for logits, chunk in pairs])

    def logits(self, states: Activations) -> Iterator[Tensor]:
        """Per chunk, the scores of all tokens at every position: shape (context, vocabulary)."""
        norm = self.weights.vector(None, "output_norm")
        assert norm is not None  # noqa: S101 - every decoder has one
        try:
            head = self.weights.matrix(None, "output")
        except KeyError:  # tied
            head = self.weights.matrix(None, "token_embd")
        for chunk in states.hidden:
            x = torch.from_numpy(chunk).to(self.device)
            yield linear(rms_norm(x, norm, self.hparams.rms_norm_eps), head)

    def mix(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Causal attention over one chunk: (tokens, heads * head_dim) each, and so the result."""
        h = self.hparams
        mask = None if h.window(layer) is None else self._mask
        queries, keys, values = (
            x.view(1, x.shape[0], heads, h.head_dim).transpose(1, 2)
            for x, heads in (
                (q, h.num_attention_heads),
                (k, h.num_key_value_heads),
                (v, h.num_key_value_heads),
            )
        )
        mixed = scaled_dot_product_attention(
            self._rotate(queries),
            self._rotate(keys),
            values,
            attn_mask=mask,
            is_causal=mask is None,
            enable_gqa=True,
        )
        return mixed.transpose(1, 2).reshape(q.shape[0], -1)

    def _rotate(self, x: Tensor) -> Tensor:
        first, second = x.chunk(2, -1)
        return torch.cat(
            (
                first * self._cos - second * self._sin,
                second * self._cos + first * self._sin,
            ),
            -1,
        )


class _Layer:
    """One layer over all chunks."""

    def __init__(
        self,
        forward: Forward,
        layer: int,
        states: Activations,
        visitor: Visitor,
        report: Callable[[float], None],
    ) -> None:
        self._forward = forward
        self._weights = forward.weights
        self._layer = layer
        self._visitor = visitor
        self._report = report
        self._states = states
        self._eps = forward.hparams.rms_norm_eps
        width = states.hidden.shape[-1]
        # What the feed-forward part reads (normed), and where its results are added.
        self._normed = torch.from_numpy(states.middle).view(-1, width)
        self._out = torch.from_numpy(states.out).view(-1, width)

    def attend(self) -> None:
        """``out`` = hidden + attention of it; ``middle`` = that, normed."""
        norm, after = self._vector("attn_norm"), self._vector("ffn_norm")
        assert norm is not None  # noqa: S101 - every decoder has them
        assert after is not None  # noqa: S101 - the same
        biases = [self._vector(f"{role}_bias") for role in QKV]
        out_bias = self._vector("attn_output_bias")

        def mixed(x: Tensor) -> Tensor:
            parts = (linear(x, w, b) for w, b in zip(qkv, biases, strict=True))
            return self._forward.mix(self._layer, *parts)

        def chunks() -> Iterator[tuple[Tensor, float]]:
            for chunk in self._states.hidden:
                yield rms_norm(self._to_device(chunk), norm, self._eps), 1.0

        into = Site(self._layer, QKV)
        qkv = self._settle(into, chunks)
        out = Site(self._layer, ("attn_output",))
        (projection,) = self._settle(out, lambda: ((mixed(x), w) for x, w in chunks()))
        router = Site(self._layer, ("ffn_gate_inp",))
        has_router = self._forward.hparams.num_local_experts > 0
        for number, (x, _) in enumerate(chunks()):
            self._pass_by(into, x)
            heads = mixed(x)
            self._pass_by(out, heads)
            hidden = self._to_device(self._states.hidden[number])
            hidden = hidden + linear(heads, projection, out_bias)
            normed = rms_norm(hidden, after, self._eps)
            if has_router:
                self._pass_by(router, normed)
            self._states.middle[number] = normed.cpu().numpy()
            self._states.out[number] = hidden.cpu().numpy()
            self._report(0.25 * (number + 1) / len(self._states.hidden))

    def feed_forward(self) -> Routing | None:
        """``out`` += what the experts, or the one dense part, make of ``middle``."""
        n_experts = self._forward.hparams.num_local_experts
        if not n_experts:
            self._expert(None, _cut(torch.arange(len(self._out))), 0.25, 1.0)
            self._require_finite()
            return None
        assigned, gates, probabilities = self._route()
        tokens, borrowed, squares = [], [], []
        done = 0.25
        for expert in range(n_experts):
            own, place = torch.where(assigned == expert)
            extra = self._borrow(expert, own, probabilities)
            tokens.append(len(own))
            squares.append(float(gates[own, place].double().square().sum()))
            borrowed.append(len(extra))
            batches = _cut(own, gates[own, place])
            if len(extra):
                # A whole number of tokens' weight, because counts of an imatrix are whole.
                mass = -(-len(extra) // _BORROWED_WEIGHT)
                batches += _cut(extra, share=mass / len(extra), borrowed=True)
            step = 0.75 * len(own) / assigned.numel()
            self._expert(expert, batches, done, done + step)
            done += step
        self._require_finite()
        return Routing(tuple(tokens), tuple(borrowed), tuple(squares))

    def merge(self, merger: Merger) -> Routing | None:
        """``out`` += what a dense part in the experts' place makes of ``middle``."""
        before = torch.from_numpy(self._states.keep()).view_as(self._out)
        routing = self.feed_forward()
        assert routing is not None  # noqa: S101 - only mixtures are merged
        self._out -= before
        dense = merger(self._layer, self._normed, self._out, routing)
        for batch in self._all():
            made = dense(self._normed[batch.tokens].to(self._forward.device))
            self._out[batch.tokens] = before[batch.tokens] + made.cpu()
        self._require_finite()
        return routing

    def _route(self) -> tuple[Tensor, Tensor, Tensor]:
        """Per token the experts chosen and their weights, (tokens, k), and all probabilities."""
        matrix = self._weights.matrix(self._layer, "ffn_gate_inp")
        parts = []
        for batch in _cut(torch.arange(len(self._normed))):
            parts.append(linear(self._normed[batch.tokens].to(self._forward.device), matrix).cpu())
        probabilities = torch.softmax(torch.cat(parts), -1)
        weights, chosen = probabilities.topk(self._forward.hparams.num_experts_per_tok, -1)
        return chosen, weights / weights.sum(-1, keepdim=True), probabilities

    def _borrow(self, expert: int, own: Tensor, probabilities: Tensor) -> Tensor:
        """Tokens of other experts for one that has too few: those its router score is best for."""
        wanted = min(self._forward._fewest, len(probabilities)) - len(own)
        if wanted <= 0:
            return torch.empty(0, dtype=torch.long)
        scores = probabilities[:, expert].clone()
        scores[own] = -1
        return scores.topk(wanted).indices.sort().values

    def _expert(self, expert: int | None, batches: _Batches, start: float, end: float) -> None:
        """One gated feed-forward part over its tokens."""
        kind = "" if expert is None else "_exps"
        into = Site(self._layer, (f"ffn_gate{kind}", f"ffn_up{kind}"), expert)
        out = Site(self._layer, (f"ffn_down{kind}",), expert)
        gate_bias, up_bias, down_bias = (
            self._vector(f"ffn_{part}_bias") for part in ("gate", "up", "down")
        )

        def inputs() -> Iterator[tuple[Tensor, float]]:
            for batch in batches:
                yield self._normed[batch.tokens].to(self._forward.device), batch.share

        def inner(x: Tensor) -> Tensor:
            return silu(linear(x, gate, gate_bias)) * linear(x, up, up_bias)

        gate, up = self._settle(into, inputs)
        (down,) = self._settle(out, lambda: ((inner(x), share) for x, share in inputs()))
        seen, total = 0, sum(len(batch.tokens) for batch in batches)
        for batch, (x, share) in zip(batches, inputs(), strict=True):
            self._pass_by(into, x, share)
            hidden = inner(x)
            self._pass_by(out, hidden, share)
            if not batch.borrowed:
                result = linear(hidden, down, down_bias).cpu()
                if batch.gates is not None:
                    result *= batch.gates[:, None]
                self._out[batch.tokens] += result  # an expert has a token once
            seen += len(batch.tokens)
            self._report(start + (end - start) * seen / total)

    def _settle(self, site: Site, inputs: _Inputs) -> tuple[Tensor, ...]:
        """The weights of a site, replaced where the visitor does that."""
        weights = tuple(self._weights.matrix(self._layer, r, site.expert) for r in site.roles)
        if not self._visitor.replaces:
            return weights
        for x, share in inputs():
            self._visitor.observe(site, x, share)
        return self._visitor.replace(site, weights)

    def _pass_by(self, site: Site, inputs: Tensor, share: float = 1.0) -> None:
        if not self._visitor.replaces:
            self._visitor.observe(site, inputs, share)

    def _require_finite(self) -> None:
        for batch in self._all():
            require_finite(self._out[batch.tokens], f"what layer {self._layer} gives")

    def _all(self) -> _Batches:
        return _cut(torch.arange(len(self._out)))

    def _vector(self, role: str) -> Tensor | None:
        return self._weights.vector(self._layer, role)

    def _to_device(self, chunk: NDArray[np.float32]) -> Tensor:
        return torch.from_numpy(chunk).to(self._forward.device)


def require_finite(values: Tensor, what: str) -> None:
    """Refuse activations, or sums of them, that nothing can be solved with.

    Raises:
        CalibrationError: one is NaN or infinite.

    """
    if not torch.isfinite(values).all():
        raise CalibrationError(
            f"The activations are not finite in {what}; a weight before it is damaged or huge, or "
            "the model does not fit its config.json. Download it again."
        )


def losses_of(logits: Tensor, tokens: NDArray[np.int64]) -> NDArray[np.float64]:
    """Minus the log-probability of each token in the second half of a chunk, 1-D.

    Args:
        logits: of all tokens, or of the second half's.
        tokens: all of the chunk.

    """
    first = scored_from(len(tokens))
    wanted = torch.from_numpy(tokens[first + 1 :]).to(logits.device)
    losses = [
        -torch.log_softmax(some, -1).gather(-1, target[:, None])
        for some, target in zip(
            logits[first - len(tokens) : -1].split(_SCORED_AT_ONCE),
            wanted.split(_SCORED_AT_ONCE),
            strict=True,
        )
    ]
    found: NDArray[np.float64] = torch.cat(losses).double().view(-1).cpu().numpy()
    return found


def scored_from(context: int) -> int:
    """The first token of a chunk whose logits are looked at."""
    return context // 2


@contextmanager
def exact_math() -> Iterator[None]:
    """No gradients, and float32 that is float32 on a GPU too."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        with torch.inference_mode():
            yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Rows over their root mean square, times a weight per column."""
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight


def _window_mask(context: int, window: int | None, device: torch.device) -> Tensor | None:
    """Which keys a query sees where attention has a window; None where it sees all before it."""
    if window is None or window >= context:
        return None
    ages = torch.arange(context)[:, None] - torch.arange(context)
    return ((ages >= 0) & (ages < window)).to(device)


def _cut(
    tokens: Tensor, gates: Tensor | None = None, share: float = 1.0, borrowed: bool = False
) -> _Batches:
    cuts = [slice(start, start + _BATCH) for start in range(0, len(tokens), _BATCH)]
    return [
        _Batch(tokens[cut], None if gates is None else gates[cut], share, borrowed) for cut in cuts
    ]
