"""Which encoding each tensor of a quant gets: llama-quantize's rules, tensor by tensor.

The rules are those of ``llama_tensor_get_type`` in llama.cpp's ``src/llama-quant.cpp`` (as pinned
in ``vendor/manifest.toml``), restricted to the architecture ``llama``. They look at the role, the
layer, the number of experts, grouped-query attention and whether there is an imatrix, and they
depend on the order of the tensors, because llama.cpp counts as it goes; ``in_file_order`` gives
that order.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from quantkit.encodings.encoding import Encoding, encoding
from quantkit.families.model import Facts, Target
from quantkit.plan.quants import Quant

# Roles whose matrices are quantized; norms, biases, the router and rope factors stay in F32.
QUANTIZED = {
    "token_embd",
    "output",
    "attn_q",
    "attn_k",
    "attn_v",
    "attn_output",
    "ffn_gate",
    "ffn_up",
    "ffn_down",
    "ffn_gate_exps",
    "ffn_up_exps",
    "ffn_down_exps",
}

# Mixtures of 1 and 2 bits, which share rules of their own.
_TINY = {"iq1_s", "iq1_m", "iq2_xxs", "iq2_xs", "iq2_s", "iq2_m"}
# What each block format falls back to where a row is no multiple of its 256 elements.
_FALLBACK = {
    "IQ1_S": "IQ4_NL",
    "IQ1_M": "IQ4_NL",
    "IQ2_XXS": "IQ4_NL",
    "IQ2_XS": "IQ4_NL",
    "IQ2_S": "IQ4_NL",
    "IQ3_XXS": "IQ4_NL",
    "IQ3_S": "IQ4_NL",
    "IQ4_XS": "IQ4_NL",
    "Q2_K": "Q4_0",
    "Q3_K": "Q4_0",
    "TQ1_0": "Q4_0",
    "TQ2_0": "Q4_0",
    "Q4_K": "Q5_0",
    "Q5_K": "Q5_1",
    "Q6_K": "Q8_0",
}
_NEEDS_IMATRIX = {"IQ3_XXS", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ1_M", "IQ1_S"}
# Those whose kernels end the process without one, whatever the tensor.
_KERNEL_NEEDS_IMATRIX = {"IQ2_XXS", "IQ2_XS", "IQ1_S"}
_LAYER = re.compile(r"blk\.(\d+)\.")


@dataclass(frozen=True, slots=True)
class Override:
    """``--tensor-type PATTERN=TYPE``: tensors whose name contains a match get this encoding."""

    pattern: re.Pattern[str]
    encoding: Encoding


def in_file_order(targets: Iterable[Target]) -> list[Target]:
    """The tensors in the order that llama-quantize writes: by layer, then by name."""

    def key(target: Target) -> tuple[int, str]:
        match = _LAYER.match(target.name)
        return (int(match[1]) if match else -1, target.name)

    return sorted(targets, key=key)


def needs_imatrix(target: Target, chosen: Encoding, quant: Quant) -> bool:
    """Whether llama-quantize refuses or fails to write this tensor without an importance matrix."""
    if chosen.name in _KERNEL_NEEDS_IMATRIX:
        return True
    if target.role in ("token_embd", "output"):
        return False
    return chosen.name in _NEEDS_IMATRIX or (chosen.name == "Q2_K" and quant.name == "q2_k_s")


def assign(
    targets: Sequence[Target],
    facts: Facts,
    quant: Quant,
    has_imatrix: bool,
    overrides: Sequence[Override] = (),
) -> list[Encoding]:
    """The encoding of each tensor.

    Args:
        targets: in file order.
        facts: of the model.
        quant: what is asked for.
        has_imatrix: whether an importance matrix is given; some rules depend on it.
        overrides: the first whose pattern matches wins over the rules.

    """
    mixture = _Mixture(
        quant.name,
        facts,
        has_imatrix,
        tied=all(target.role != "output" for target in targets),
        n_attn_v=sum(target.role == "attn_v" for target in targets),
    )
    chosen = []
    for target in targets:
        if target.role not in QUANTIZED:
            chosen.append(encoding(target.stored))
        elif not quant.encoding.is_block:
            chosen.append(quant.encoding)
        else:
            forced = next((o.encoding for o in overrides if o.pattern.search(target.name)), None)
            wanted = forced or encoding(mixture.choose(target, quant.encoding.name))
            chosen.append(_fit_to_rows(wanted, target.columns))
    return chosen


def _fit_to_rows(wanted: Encoding, columns: int) -> Encoding:
    """The encoding itself, or what llama-quantize takes where rows are no whole blocks of it."""
    if wanted.holds_rows_of(columns):
        return wanted
    smaller = encoding(_FALLBACK.get(wanted.name, wanted.name))
    return smaller if smaller.holds_rows_of(columns) else encoding("F16")


@dataclass(slots=True)
class _Mixture:
    """The state that llama-quantize carries from tensor to tensor while it picks types."""

    quant: str
    facts: Facts
    has_imatrix: bool
    tied: bool
    n_attn_v: int
    seen_attn_v: int = 0
    seen_ffn_down: int = 0
    seen_ffn_gate: int = 0
    seen_ffn_up: int = 0

    def choose(self, target: Target, default: str) -> str:
        """The name of the encoding for one tensor, before the row-length fallback."""
        role = target.role.removesuffix("_exps")
        if role == "output" or (role == "token_embd" and self.tied):
            return self._output(target.columns, default)
        if role == "token_embd":
            return self._token_embd(default)
        if self.quant in _TINY:
            return self._tiny(role, default)
        match role:
            case "attn_v":
                return self._attn_v(default)
            case "attn_k" | "attn_q":
                return self._attn_qk(role, default)
            case "attn_output":
                return self._attn_output(default)
            case "ffn_down":
                return self._ffn_down(target, default)
            case _:
                return self._ffn_gate_up(role, target, default)

    @property
    def _eight_experts(self) -> bool:
        return self.facts.n_experts == 8

    @property
    def _is_70b(self) -> bool:
        return self.facts.is_70b

    @property
    def _wide_gqa(self) -> bool:
        return self.facts.gqa >= 4

    def _layer(self, target: Target, seen: int) -> int:
        # Experts may lie out of order, so llama.cpp reads the layer from their names.
        experts = self.facts.n_experts > 1
        return target.layer if experts and target.layer is not None else seen

    def _output(self, columns: int, default: str) -> str:
        if not encoding(default).holds_rows_of(columns):
            return "Q8_0"
        if self.quant in _TINY or self.quant == "iq3_xxs":
            return "Q5_K"
        return default if default == "Q8_0" else "Q6_K"

    def _token_embd(self, default: str) -> str:
        match self.quant:
            case "iq2_xxs" | "iq2_xs" | "iq1_s" | "iq1_m":
                return "Q2_K"
            case "iq2_s" | "iq2_m" | "iq3_xxs":
                return "IQ3_S"
        return default

    def _tiny(self, role: str, default: str) -> str:
        larger = "IQ3_S" if self.quant in ("iq2_s", "iq2_m") else "Q2_K"
        match role:
            case "attn_v":
                self.seen_attn_v += 1
                return "Q4_K" if self._wide_gqa or self.facts.n_experts >= 4 else larger
            case "attn_k" if self._eight_experts:
                return "Q4_K"
            case "ffn_down":
                self.seen_ffn_down += 1
                early = self.seen_ffn_down <= self.facts.n_layers // 8
                return larger if early else default
            case "attn_output" if self._eight_experts:
                return "Q5_K"
            case "attn_output" if self.quant in ("iq1_s", "iq1_m"):
                return "IQ2_XXS"
            case "attn_output" if self.quant in ("iq2_s", "iq2_m"):
                return "IQ3_S"
        return default

    def _attn_v(self, default: str) -> str:
        chosen = default
        match self.quant:
            case "q2_k":
                chosen = "Q4_K" if self._wide_gqa else "Q3_K"
            case "q2_k_s" | "iq3_xs" | "iq3_s" if self._wide_gqa:
                chosen = "Q4_K"
            case "iq3_xxs":
                without = "IQ3_XXS" if self.has_imatrix else "IQ3_S"
                chosen = "Q4_K" if self._wide_gqa else without
            case "iq3_m":
                chosen = "Q4_K"
            case "q3_k_m":
                chosen = "Q5_K" if self.seen_attn_v < 2 else "Q4_K"
            case "q3_k_l":
                chosen = "Q5_K"
            case "iq4_nl" | "iq4_xs" if self._wide_gqa:
                chosen = "Q5_K"
            case "q4_k_m" | "q5_k_m" if _more_bits(self.seen_attn_v, self.n_attn_v):
                chosen = "Q6_K"
            case "q4_k_s" if self.seen_attn_v < 4:
                chosen = "Q5_K"
        if self._is_70b and chosen in ("Q3_K", "Q4_K"):
            chosen = "Q5_K"
        if self._eight_experts:
            chosen = "Q8_0"
        self.seen_attn_v += 1
        return chosen

    def _attn_qk(self, role: str, default: str) -> str:
        if role == "attn_k" and self._eight_experts:
            return "Q8_0"
        return {"iq3_xs": "IQ3_XXS", "iq3_xxs": "IQ2_S"}.get(self.quant, default)

    def _attn_output(self, default: str) -> str:
        if self._eight_experts:
            raised = "q2_k iq3_xs iq3_xxs iq3_s iq3_m q3_k_s q3_k_m iq4_nl iq4_xs q4_k_s q4_k_m"
            return "Q5_K" if self.quant in raised.split() else default
        return {
            "q2_k": "Q3_K",
            "iq3_xxs": "IQ3_S",
            "q3_k_m": "Q4_K",
            "q3_k_l": "Q5_K",
            "iq3_m": "Q4_K",
        }.get(self.quant, default)

    def _ffn_down(self, target: Target, default: str) -> str:
        n = self.facts.n_layers
        layer = self._layer(target, self.seen_ffn_down)
        self.seen_ffn_down += 1
        early, more = layer < n // 8, _more_bits(layer, n)
        match self.quant:
            case "q2_k":
                return "Q3_K"
            case "q2_k_s" if early:
                return "Q4_K"
            case "iq3_xxs" if not self.has_imatrix:
                return "Q4_K" if early else "Q3_K"
            case "q3_k_m":
                return "Q5_K" if layer < n // 16 else "Q4_K"
            case "iq3_m" if early or (self._eight_experts and more):
                return "Q4_K"
            case "q3_k_l":
                return "Q5_K"
            case "q4_k_m" | "q5_k_m" if more:
                return "Q6_K"
            case "iq4_nl" | "iq4_xs" if early and not self.has_imatrix:
                return "Q5_K"
            case "q4_k_s" if early:
                return "Q5_K"
            case "q4_0" | "q5_0" if early and self.has_imatrix:
                return "Q4_1" if self.quant == "q4_0" else "Q5_1"
        return default

    def _ffn_gate_up(self, role: str, target: Target, default: str) -> str:
        n = self.facts.n_layers
        if role == "ffn_gate":
            layer = self._layer(target, self.seen_ffn_gate)
            self.seen_ffn_gate += 1
        else:
            layer = self._layer(target, self.seen_ffn_up)
            self.seen_ffn_up += 1
        middle = n // 8 <= layer < 7 * n // 8
        return "IQ3_XXS" if self.quant == "iq3_xs" and middle else default


def _more_bits(i: int, n: int) -> bool:
    """The layers that the K mixtures favour: the first and last eighth, and every third between."""
    return i < n // 8 or i >= 7 * n // 8 or (i - n // 8) % 3 == 2
