"""Which encoding each tensor of a quant gets: llama-quantize's rules, tensor by tensor.

The rules are those of ``llama_tensor_get_type`` in llama.cpp's ``src/llama-quant.cpp`` (as pinned
in ``vendor/manifest.toml``), for every architecture. They look at the tensor's name and shape, the
architecture, the layer, the number of experts, grouped-query attention and whether there is an
imatrix, and they depend on the order of the tensors, because llama.cpp counts as it goes;
``in_file_order`` gives that order.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from quantkit.core.errors import PlanError
from quantkit.encodings.encoding import Encoding, encoding, encodings
from quantkit.families.model import Facts, Target
from quantkit.planning.fallback import fit_to_rows, require_convertible
from quantkit.planning.names import (
    ATTN_V,
    PER_LAYER_TOKEN_EMBD,
    Category,
    category_of,
    layer_of,
    may_be_quantized,
    place_of,
)
from quantkit.planning.recipe import Recipe

# Mixtures of 1 and 2 bits, which share rules of their own.
_TINY = {"iq1_s", "iq1_m", "iq2_xxs", "iq2_xs", "iq2_s", "iq2_m"}
NEEDS_IMATRIX = {"IQ3_XXS", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ1_M", "IQ1_S"}
_MAY_NEED_IMATRIX = NEEDS_IMATRIX | {"Q2_K"}
# Those whose kernels end the process without one, whatever the tensor.
_KERNEL_NEEDS_IMATRIX = {"IQ2_XXS", "IQ2_XS", "IQ1_S"}
# Mixtures with a rule that asks whether there is one; those of the others are the same either way.
HEEDS_IMATRIX = frozenset({"iq3_xxs", "iq4_nl", "iq4_xs", "q4_0", "q5_0"})
_MODELS = 8  # whose names are sorted once: every quant of a model has the same
_ENDS: frozenset[Category] = frozenset({"token_embd", "output"})
# Parts of names that are never rounded to less than 8 bits.
_AT_LEAST_Q8_0 = {"glm5-next": ("attn_q_a", "attn_q_b", "nextn.eh_proj")}


def in_file_order(targets: Iterable[Target]) -> list[Target]:
    """The tensors in the order that llama-quantize writes: by layer, then by the name's bytes."""
    given = list(targets)
    return [given[i] for i in _order(tuple(target.name for target in given))]


@lru_cache(maxsize=_MODELS)
def _order(names: tuple[str, ...]) -> list[int]:
    return sorted(range(len(names)), key=lambda i: place_of(names[i]))


def is_quantized(encoding: Encoding) -> bool:
    """Whether weights stored so were rounded to blocks (``ggml_is_quantized``).

    llama-quantize changes the encoding of such a tensor only with ``--allow-requantize``.
    """
    return encoding.is_block


def needs_imatrix(target: Target, chosen: Encoding, recipe: Recipe) -> bool:
    """Whether llama-quantize refuses or fails to write this tensor without an importance matrix.

    One that keeps the encoding it is stored in is copied and needs none.
    """
    if chosen.name == target.stored or chosen.name not in _MAY_NEED_IMATRIX:
        return False
    if chosen.name in _KERNEL_NEEDS_IMATRIX:
        return True
    if category_of(target.name) in ("token_embd", "output"):
        return False
    return chosen.name in NEEDS_IMATRIX or recipe.mixture == "q2_k_s"


def assign(
    targets: Sequence[Target], arch: str, facts: Facts, recipe: Recipe, has_imatrix: bool
) -> list[Encoding]:
    """The encoding of each tensor.

    Args:
        targets: in file order.
        arch: the model's architecture in GGUF.
        facts: of the model.
        recipe: what is asked for.
        has_imatrix: whether an importance matrix is given; some rules depend on it.

    Raises:
        PlanError: llama-quantize would give up on a tensor, or write none that can be read.

    """
    categories = [category_of(target.name) for target in targets]
    mixture = _Mixture(
        recipe.mixture,
        arch,
        facts,
        has_imatrix,
        output=recipe.output,
        tied="output" not in categories,
        n_attn_v=sum(category in ATTN_V for category in categories),
    )
    chosen = []
    known = encodings()
    for target, category in zip(targets, categories, strict=True):
        stored = kind = known[target.stored]
        if may_be_quantized(target, arch):
            wish = _asked_for(target, category, recipe) if category in _ENDS else None
            kind = wish or _by_rules(target, category, recipe, mixture)
        if kind is not stored:
            require_convertible(target, kind)
        chosen.append(kind)
    return chosen


def _asked_for(target: Target, category: Category, recipe: Recipe) -> Encoding | None:
    """What the recipe says of the output or the embeddings; such a wish falls back to nothing."""
    if category == "token_embd" and recipe.token_embedding is not None:
        # This table is a matter of its own, which an override may name.
        named = target.name == PER_LAYER_TOKEN_EMBD and recipe.named(target.name) is not None
        return None if named else recipe.token_embedding
    return recipe.output if category == "output" else None


def _by_rules(target: Target, category: Category, recipe: Recipe, mixture: "_Mixture") -> Encoding:
    if not recipe.encoding.is_block:
        return recipe.encoding
    wanted = recipe.named(target.name)
    if wanted is None:
        wanted = encoding(mixture.choose(target, category, recipe.encoding.name))
    return fit_to_rows(wanted, target)


@dataclass(slots=True)
class _Mixture:
    """The state that llama-quantize carries from tensor to tensor while it picks types."""

    quant: str
    arch: str
    facts: Facts
    has_imatrix: bool
    output: Encoding | None
    tied: bool
    n_attn_v: int
    seen_attn_v: int = 0
    seen_ffn_down: int = 0
    seen_ffn_gate: int = 0
    seen_ffn_up: int = 0

    def choose(self, target: Target, category: Category, default: str) -> str:
        """The name of the encoding for one tensor, before the row-length fallback."""
        raised = _AT_LEAST_Q8_0.get(self.arch)
        if raised is not None and any(part in target.name for part in raised):
            return "Q8_0"
        if category == "output" or (category == "token_embd" and self.tied):
            return self._output(target.columns, default)
        if self.quant == "mxfp4_moe":
            return self._mxfp4_moe(target, category)
        if category == "token_embd":
            return self._token_embd(default)
        if self.quant in _TINY:
            return self._tiny(target, category, default)
        match category:
            case "attn_v" | "attn_qkv" | "attn_kv_b":
                return self._attn_v(target, default)
            case "attn_k" | "attn_q":
                return self._attn_qk(category, default)
            case "attn_output":
                return self._attn_output(default)
            case "ffn_down":
                return self._ffn_down(target, default)
            case "ffn_gate" | "ffn_up":
                return self._ffn_gate_up(category, target, default)
        return default

    @property
    def _eight_experts(self) -> bool:
        return self.facts.n_experts == 8

    @property
    def _falcon(self) -> bool:
        return self.arch == "falcon"

    def _wide_gqa(self, target: Target) -> bool:
        if not self.facts.n_layers:
            raise PlanError(
                f"{self.quant} asks how {target.name} shares its heads, and a {self.arch} file "
                "does not say; choose a quant such as q8_0, q6_k or q4_k_m."
            )
        return self.facts.gqa >= 4

    def _layer(self, target: Target, seen: int) -> int:
        """The layer that rules go by: as many as were seen, or what the name of an expert says."""
        if self.facts.n_experts <= 1:
            return seen
        # Experts may lie out of order, so llama.cpp reads the layer from their names.
        layer = layer_of(target.name)
        if layer is None or not 0 <= layer < self.facts.n_layers:
            raise PlanError(
                f"{self.quant} asks for the layer of {target.name}, one of {self.facts.n_layers}, "
                "and llama-quantize finds none in its name; name its type with --tensor-type, or "
                "choose bf16."
            )
        return layer

    def _output(self, columns: int, default: str) -> str:
        if self.output is not None:
            return self.output.name
        if self.quant == "mxfp4_moe" or self._falcon:
            return "Q8_0"
        if not encoding(default).holds_rows_of(columns):
            return "Q8_0"
        if self.quant in _TINY or self.quant == "iq3_xxs":
            return "Q5_K"
        return default if default == "Q8_0" else "Q6_K"

    def _mxfp4_moe(self, target: Target, category: Category) -> str:
        stacked = len(target.shape) > 2 and target.shape[-3] > 1
        # Its projections of latent attention are stacks, too.
        if self.arch == "bailingmoe3" and category not in ("ffn_up", "ffn_gate", "ffn_down"):
            stacked = False
        return "MXFP4" if stacked else "Q8_0"

    def _token_embd(self, default: str) -> str:
        match self.quant:
            case "iq2_xxs" | "iq2_xs" | "iq1_s" | "iq1_m":
                return "Q2_K"
            case "iq2_s" | "iq2_m" | "iq3_xxs":
                return "IQ3_S"
            case "tq1_0" | "tq2_0" | "q2_0":
                return "Q4_K"
        return default

    def _tiny(self, target: Target, category: Category, default: str) -> str:
        larger = "IQ3_S" if self.quant in ("iq2_s", "iq2_m") else "Q2_K"
        match category:
            case "attn_v" | "attn_qkv" | "attn_kv_b":
                return "Q4_K" if self._wide_gqa(target) or self.facts.n_experts >= 4 else larger
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

    def _attn_v(self, target: Target, default: str) -> str:
        chosen = default
        match self.quant:
            case "q2_k":
                chosen = "Q4_K" if self._wide_gqa(target) else "Q3_K"
            case "q2_k_s" | "iq3_xs" | "iq3_s" if self._wide_gqa(target):
                chosen = "Q4_K"
            case "iq3_xxs":
                without = "IQ3_XXS" if self.has_imatrix else "IQ3_S"
                chosen = "Q4_K" if self._wide_gqa(target) else without
            case "iq3_m":
                chosen = "Q4_K"
            case "q3_k_m":
                chosen = "Q5_K" if self.seen_attn_v < 2 else "Q4_K"
            case "q3_k_l":
                chosen = "Q5_K"
            case "iq4_nl" | "iq4_xs" if self._wide_gqa(target):
                chosen = "Q5_K"
            case "q4_k_m" | "q5_k_m" if _more_bits(self.seen_attn_v, self.n_attn_v):
                chosen = "Q6_K"
            case "q4_k_s" if self.seen_attn_v < 4:
                chosen = "Q5_K"
        if self.facts.is_70b and chosen in ("Q3_K", "Q4_K"):
            chosen = "Q5_K"
        if self._eight_experts:
            chosen = "Q8_0"
        self.seen_attn_v += 1
        return chosen

    def _attn_qk(self, category: Category, default: str) -> str:
        if category == "attn_k" and self._eight_experts:
            return "Q8_0"
        return {"iq3_xs": "IQ3_XXS", "iq3_xxs": "IQ2_S"}.get(self.quant, default)

    def _attn_output(self, default: str) -> str:
        if self._falcon:
            return "Q4_K" if self.quant == "q3_k_l" else default
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
            case "q3_k_m" if layer < n // 16:
                return "Q5_K"
            case "q3_k_m" if not self._falcon or more:
                return "Q4_K"
            case "iq3_m" if early or (self._eight_experts and more):
                return "Q4_K"
            case "q3_k_l":
                return "Q4_K" if self._falcon else "Q5_K"
            case "q4_k_m" if self._falcon and layer >= n // 16:
                return "Q5_K" if more else "Q4_K"
            case "q4_k_m" | "q5_k_m" if more:
                return "Q6_K"
            case "iq4_nl" | "iq4_xs" if early and not self.has_imatrix:
                return "Q5_K"
            case "q4_k_s" if early and not self._falcon:
                return "Q5_K"
            case "q4_0" | "q5_0" if early and self.has_imatrix:
                return "Q4_1" if self.quant == "q4_0" else "Q5_1"
        return default

    def _ffn_gate_up(self, category: Category, target: Target, default: str) -> str:
        n = self.facts.n_layers
        if category == "ffn_gate":
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
