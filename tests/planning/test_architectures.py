"""The type of every tensor of models of all kinds, against ``llama-quantize --dry-run``.

Headers at published depth and width, because rules ask for both. That the rules ask for nothing
else is seen from the conditions in them, of which each goes both ways for what is compared here.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from gguf import GGMLQuantizationType

from quantkit.core.errors import GGUFError, PlanError
from quantkit.encodings.encoding import encoding
from quantkit.planning import fallback, llama_quantize, names
from quantkit.planning.quants import all_quants
from quantkit.planning.recipe import Recipe
from tests.architectures.dry_run import dry_run, imatrix_of_nothing
from tests.architectures.published import HEADERS, REFUSED, header
from tests.architectures.sparse import Header, sparse_gguf
from tests.branches import Branches
from tests.native_tools import ToolError
from tests.planning.large_headers import targets_of, types_of

# The quants whose types depend on an importance matrix. That the others do not is seen on the
# models of tests/parity/test_dry_run.py.
GUIDED = ("iq3_xxs", "iq4_nl", "iq4_xs", "q4_0", "q5_0")
# Variants are these with options, of which there are some below.
MIXTURES = tuple(name for name, quant in all_quants().items() if not quant.base)

NORMS_AND_EMBEDDINGS = {
    "token_embd.weight": (256, 300),
    "output_norm.weight": (256,),
    "output.weight": (256, 300),
}
KEYS: dict[str, Any] = {
    "context_length": 64,
    "embedding_length": 256,
    "block_count": 4,
    "attention.layer_norm_rms_epsilon": 1e-5,
    "attention.head_count": 4,
    "rope.dimension_count": 64,
}
EXPERTS = {"expert_count": 8, "expert_used_count": 2}


def odd(**tensors: tuple[int, ...]) -> Header:
    """Tensors that no model has; ``__`` in names stands for a dot."""
    spelled = {name.replace("__", "."): shape for name, shape in tensors.items()}
    return Header("llama", KEYS, NORMS_AND_EMBEDDINGS | spelled)


def experts(n: int, layers: int = 16) -> Header:
    """Two matrices of each kind per layer, so that counting them does not give the layer."""
    tensors: dict[str, tuple[int, ...]] = {}
    for i in range(layers):
        tensors[f"blk.{i}.attn_v.weight"] = (256, 256)
        for part in ("ffn_up", "ffn_gate", "ffn_down"):
            tensors[f"blk.{i}.{part}_exps.weight"] = (256, 256, n)
            tensors[f"blk.{i}.{part}_shexp.weight"] = (256, 256)
    keys = {"block_count": layers, "expert_count": n, "expert_used_count": 1}
    return Header("llama", KEYS | keys, NORMS_AND_EMBEDDINGS | tensors)


def one_expert_without_layer() -> Header:
    model = experts(1)
    return Header("llama", model.keys, {**model.tensors, "mtp.ffn_down.weight": (256, 256)})


def expert(name: str) -> Header:
    return Header("llama", KEYS | EXPERTS, NORMS_AND_EMBEDDINGS | {name: (256, 64, 8)})


# Names and shapes at the edge of what rules look for.
ODD: dict[str, Callable[[], Header]] = {
    # Without "weight" at its end a name is not a weight's, but for those of five letters.
    "names": lambda: odd(
        abcde=(256, 8),
        abcd=(256, 8),
        abcdef=(256, 8),
        weight=(256, 8),
        weights=(256, 8),
        blk__0__weight__bias=(256, 8),
        blk__0__myattn_v__weight=(256, 8),
        blk__0__attn_v__weight_weight=(256, 8),
        blk__0__ffn_upper__weight=(256, 8),
        my_output__weight=(256, 8),
        my_token_embd__weight=(256, 8),
        per_layer_token_embd__weight=(256, 8),
        blk__0__position_embd__weight=(256, 8),
        position_embd__weight=(256, 8),
    ),
    # A matrix of one row is none, one of one column is.
    "shapes": lambda: odd(
        blk__0__attn_q__weight=(256, 1),
        blk__1__attn_q__weight=(1, 256),
        blk__2__attn_q__weight=(256, 1, 3),
        blk__3__attn_q__weight=(256, 3, 1),
        blk__3__attn_k__weight=(1, 1),
        blk__3__ffn_up__weight=(256, 3, 1, 1),
    ),
    # Layers are numbers, what stands behind them is not looked at, and names go by their bytes.
    "order": lambda: odd(
        **{
            "blk.10.attn_q.weight": (256, 8),
            "blk.9.attn_q.weight": (256, 8),
            "blk.+3.attn_q.weight": (256, 8),
            "blk.-2.attn_q.weight": (256, 8),
            "blk.-1.attn_q.weight": (256, 8),
            "blk.5x.attn_q.weight": (256, 8),
            "blk.x.attn_q.weight": (256, 8),
            "blk.0.\u00e9.weight": (256, 8),
            "blk.0.z.weight": (256, 8),
            "blk.0.\uff5e.weight": (256, 8),
            "blk.0.\U0001f600.weight": (256, 8),
            "enc.blk.0.attn_q.weight": (256, 8),
        }
    ),
    "one-expert": one_expert_without_layer,
    "two-experts": lambda: experts(2),
    "three-experts": lambda: experts(3),
    "four-experts": lambda: experts(4),
    "five-experts": lambda: experts(5),
    "expert-without-layer": lambda: expert("enc.blk.0.ffn_up_exps.weight"),
    "expert-beyond-the-layers": lambda: expert("blk.4.ffn_down_exps.weight"),
    "expert-before-the-layers": lambda: expert("blk.-1.ffn_gate_exps.weight"),
    "expert-in-the-last-layer": lambda: expert("blk.3.ffn_gate_exps.weight"),
}
# What a user may want otherwise: for which model and quant, and llama-quantize's options.
OPTIONS: list[tuple[str, str, list[str]]] = [
    ("llama-2-7b", "q4_k_m", ["--output-tensor-type", "q8_0", "--token-embedding-type", "f16"]),
    ("llama-2-7b", "f16", ["--output-tensor-type", "q8_0", "--token-embedding-type", "q6_k"]),
    ("smollm2-135m", "q4_k_m", ["--output-tensor-type", "q5_1"]),  # tied, so of the embeddings
    ("smollm2-135m", "q4_k_m", ["--output-tensor-type", "q5_k"]),  # and it falls back
    ("smollm2-135m", "bf16", ["--output-tensor-type", "q8_0"]),
    ("smollm2-135m", "q4_k_m", ["--token-embedding-type", "q8_0", "--output-tensor-type", "q4_0"]),
    ("gemma3n-e4b", "q4_k_m", ["--token-embedding-type", "q8_0"]),  # of both tables
    ("gemma3n-e4b", "q4_k_m", ["--token-embedding-type", "q8_0", "--tensor-type", "per_lay=q4_0"]),
    ("gemma3n-e4b", "f16", ["--token-embedding-type", "q8_0", "--tensor-type", "per_lay=q4_0"]),
    ("gemma3n-e4b", "q4_k_m", ["--token-embedding-type", "q8_0", "--tensor-type", "attn_v=q4_0"]),
    ("mistral-7b", "q3_k_m", ["--tensor-type", r"blk\.[0-2]\.attn_v=q8_0"]),  # are not counted
    ("mistral-7b", "q4_0", ["--tensor-type", "attn=q8_0", "--tensor-type", "attn_v=f16"]),
    ("mistral-7b", "q4_0", ["--tensor-type", "output=f16", "--output-tensor-type", "q5_k"]),
    ("mistral-7b", "q4_0", ["--tensor-type", "norm=f16"]),
    ("rows-of-96", "q4_0", ["--tensor-type", "ffn_up=q4_k"]),
    ("rows-of-160", "q4_0", ["--tensor-type", "ffn_down=nvfp4"]),
    ("glm5-next", "q4_0", ["--tensor-type", "attn_q_a=q2_k"]),
    ("mixtral-of-2023", "q4_k_m", ["--tensor-type", r"ffn_down\.[0-3]=q2_k"]),
]


def both(
    model: Header, file: Path, quant: str, imatrix: Path | None, options: Sequence[str] = ()
) -> tuple[Any, Any]:
    """What llama-quantize says and what the rules say, None where one gives up."""
    try:
        theirs = list(dry_run(file, quant, imatrix, options).items())
    except ToolError:
        theirs = None
    return theirs, ours(model, quant, imatrix is not None, options)


def ours(model: Header, quant: str, has_imatrix: bool, options: Sequence[str] = ()) -> Any:
    try:
        return list(types_of(model, quant, has_imatrix, options).items())
    except (PlanError, GGUFError):
        return None


def differences(model: Header, folder: Path) -> dict[Any, Any]:
    """By quant, what llama-quantize says otherwise than the rules."""
    file = sparse_gguf(folder / "model.gguf", model)
    matrix = imatrix_of_nothing(folder / "any.gguf")
    wrong = {}
    for quant, imatrix in [(q, None) for q in MIXTURES] + [(q, matrix) for q in GUIDED]:
        theirs, mine = both(model, file, quant, imatrix)
        if theirs != mine:
            pairs = zip(theirs, mine, strict=True) if theirs and mine else [(theirs, mine)]
            wrong[quant, imatrix is not None] = [pair for pair in pairs if pair[0] != pair[1]][:9]
    return wrong


@pytest.mark.native
@pytest.mark.parametrize("name", HEADERS)
def test_every_type_is_llama_quantizes(name: str, tmp_path: Path) -> None:
    assert differences(header(name), tmp_path) == {}


@pytest.mark.native
@pytest.mark.parametrize("name", ODD)
def test_odd_names_and_shapes_are_read_as_llama_quantize_reads_them(
    name: str, tmp_path: Path
) -> None:
    assert differences(ODD[name](), tmp_path) == {}


@pytest.mark.native
@pytest.mark.parametrize(("name", "quant", "options"), OPTIONS)
def test_options_are_llama_quantizes(
    name: str, quant: str, options: list[str], tmp_path: Path
) -> None:
    file = sparse_gguf(tmp_path / "model.gguf", header(name))
    theirs, mine = both(header(name), file, quant, None, options)
    assert theirs == mine


@pytest.mark.native
@pytest.mark.parametrize("stored", ["Q8_0", "Q4_K", "F16"])
def test_what_no_rule_touches_keeps_its_type(stored: str, tmp_path: Path) -> None:
    kind = GGMLQuantizationType[stored]
    tensors = {f"blk.{i}.{part}.weight": (256, 8) for i in range(4) for part in ("attn_v", "altup")}
    model = Header("llama", KEYS, NORMS_AND_EMBEDDINGS | tensors, {"blk": kind})
    assert differences(model, tmp_path) == {}


# Enough of what is compared above for every condition to go both ways.
SMALL = ("rows-of-96", "rows-of-100", "vision-encoder")
LARGE = {
    "nomic-bert": ("q5_0", "q4_k_s", "iq2_m", "iq3_xxs"),
    "falcon-7b-tied": ("q4_k_m", "q3_k_m", "q3_k_l", "q2_k_s", "q4_k_s", "q2_k"),
    "mixtral-8x7b": ("iq4_xs", "iq3_m", "iq2_m", "q8_0"),
    "mistral-7b": ("q2_k_s",),
    "llama-70b": ("q4_k_m",),
    "bailingmoe3": ("mxfp4_moe", "iq2_m"),
    "glm5-next": ("q8_0",),
    "deepseek-v2-lite": ("iq2_m", "q8_0"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_llama_quantize_stops_at_is_refused(name: str) -> None:
    """That it does is in tests/architectures."""
    build, quant, _ = REFUSED[name]
    with pytest.raises((PlanError, GGUFError)):
        types_of(build(), quant.lower())


def refused() -> list[tuple[Header, str, list[str]]]:
    """What llama-quantize finds out when it comes to write it, which a dry run does not."""
    vision = Header("clip", {}, {"v.four.weight": (4, 4, 3, 8)})
    whole = Header("llama", KEYS, {"blk.0.a.weight": (256, 8)}, {"a": GGMLQuantizationType.I32})
    return [
        (vision, "f16", []),
        (whole, "f16", []),
        (header("rows-of-96"), "q4_0", ["--token-embedding-type", "q4_k"]),
        (header("rows-of-96"), "q4_0", ["--output-tensor-type", "q6_k"]),
    ]


def test_what_would_stop_llama_quantize_is_refused() -> None:
    for model, quant, options in refused():
        with pytest.raises(PlanError):
            types_of(model, quant, False, options)


def test_every_condition_of_the_rules_goes_both_ways() -> None:
    cases = [(header(name), quant, False) for name in SMALL for quant in MIXTURES]
    cases += [(header(name), quant, False) for name in LARGE for quant in LARGE[name]]
    cases += [(header("mistral-7b"), quant, True) for quant in GUIDED]
    needing = [Recipe(quant, encoding("Q2_K")) for quant in ("q2_k", "q2_k_s")]
    with Branches(llama_quantize, fallback) as rules:
        for model, quant, has_imatrix in cases:
            ours(model, quant, has_imatrix)
        for odd_model in ODD.values():
            ours(odd_model(), "q4_k_m", has_imatrix=False)
        for name, quant, options in OPTIONS:
            ours(header(name), quant, False, options)
        for model, quant, options in refused():
            ours(model, quant, False, options)
        for build, quant, _ in REFUSED.values():
            ours(build(), quant.lower(), has_imatrix=False)
        for target in targets_of(header("minilm"))[:4]:
            for kind in map(encoding, ("F32", "BF16", "IQ1_S", "IQ2_S", "Q2_K")):
                for recipe in needing:
                    llama_quantize.needs_imatrix(target, kind, recipe)
        llama_quantize.is_quantized(encoding("Q2_K"))
    assert not rules.missed, rules.missed
    with Branches(names) as parts:
        for model in (header("minilm"), header("vision-encoder"), ODD["names"](), ODD["shapes"]()):
            ours(model, "q8_0", has_imatrix=False)
    assert not parts.missed, parts.missed
