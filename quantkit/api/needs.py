"""Which options do something only beside others; given where they would not, they are refused.

One table per function. Limits (``--jobs``, ``--max-memory``) are not in them: who needs less keeps
them. What is asked of a plan is judged as the build of it would be, so that ``--dry-run`` can be
added to any.

Long because it is these tables and what they look at, and a table is read as one.
"""

from collections.abc import Callable, Container, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Generic, TypeAlias, TypeVar

from quantkit.core.errors import PlanError

if TYPE_CHECKING:
    from quantkit.api.options import BuildOptions
    from quantkit.encodings.encoding import Encoding
    from quantkit.planning.quants import Quant

W = TypeVar("W")

AUTO = Path("auto")
"""For ``--imatrix``: one is made first."""


@dataclass(frozen=True, slots=True)
class Need(Generic[W]):
    """An option of a command, by its parameter's name: when it does something, and why not else."""

    option: str
    parameter: str
    does_something: Callable[[W], bool]
    otherwise: str


def refuse_idle(given: Container[str], needs: Iterable[Need[W]], wish: W) -> None:
    """Refuse options that were given and would do nothing.

    Args:
        given: parameters of options that were given.
        needs: a table.
        wish: what the table's conditions look at.

    Raises:
        PlanError: there is such an option.

    """
    for need in needs:
        if need.parameter in given and not need.does_something(wish):
            raise PlanError(f"{need.option} {need.otherwise}.")


@dataclass(frozen=True, slots=True)
class BuildWish:
    """What of a build other options depend on."""

    quants: "Sequence[Quant]"
    options: "BuildOptions"
    only_searched: bool  # the only GGUF is that of a recipe

    def has(self, *formats: str) -> bool:
        """Whether a quant of one of these formats is asked for."""
        return any(quant.format in formats for quant in self.quants)

    @property
    def calibrates(self) -> bool:
        """Whether a text is run through the model."""
        return AUTO in self.options.encoding.imatrix or self.has("gptq")

    @property
    def has_blocks(self) -> bool:
        """Whether some GGUF has blocks: rules for tensors, and importance, count in those alone."""
        return any(quant.format == "gguf" and quant.encoding.is_block for quant in self.quants)

    @property
    def searches(self) -> bool:
        """Whether the search changes some tensor. In mixtures of blocks, but for two, it may."""
        from quantkit.encodings.kernel import is_searched

        return self._mixes or any(
            is_searched(kind.name, bool(self.options.encoding.imatrix)) for kind in self._chosen
        )

    @property
    def weighs(self) -> bool:
        """Whether importance changes how some tensor is rounded: some have no use for it."""
        return self._mixes or any(
            kind.is_block and kind.name not in _UNWEIGHED for kind in self._chosen
        )

    @property
    def rounds(self) -> bool:
        """Whether some tensor of a GGUF is rounded to blocks."""
        return self.has_blocks or any(kind.is_block for kind in self._chosen)

    @property
    def _chosen(self) -> "Sequence[Encoding]":
        overrides, *two = self.options.encoding.parse_types()
        of_patterns = [override.encoding for override in overrides] if self.has_blocks else []
        return [*of_patterns, *(kind for kind in two if kind and self.has("gguf"))]

    @property
    def _mixes(self) -> bool:
        unmixed = ("Q8_0", "MXFP4")
        return any(
            quant.format == "gguf"
            and quant.encoding.is_block
            and quant.encoding.name not in unmixed
            for quant in self.quants
        )

    @property
    def leaves_variants(self) -> bool:
        """Whether each variant that is asked for keeps a type of its own."""
        encoding = self.options.encoding
        two = encoding.output_tensor_type, encoding.token_embedding_type
        return None in two or not any(quant.base for quant in self.quants)

    @property
    def has_4_bit_bnb(self) -> bool:
        """Whether some quant has the blocks of bitsandbytes."""
        return any(q.format == "bnb" and q.name != "bnb-int8" for q in self.quants)


# Formats whose kernels have no use for importance.
_UNWEIGHED = {"Q8_0", "MXFP4", "NVFP4", "TQ1_0", "TQ2_0", "Q1_0", "Q2_0"}

_Build: TypeAlias = Need[BuildWish]


def _calibration(option: str) -> _Build:
    return Need(
        option,
        option.removeprefix("--"),
        lambda wish: wish.calibrates,
        "is for calibration, and this build needs none: it goes with --imatrix auto and with GPTQ "
        "quants; leave it out",
    )


def _gptq(option: str, parameter: str) -> _Build:
    why = "is for GPTQ quants, and you asked for none; leave it out"
    return Need(option, parameter, lambda wish: wish.has("gptq"), why)


def _bnb(option: str, parameter: str) -> _Build:
    why = "is for 4-bit bnb quants, and you asked for none; leave it out"
    return Need(option, parameter, lambda wish: wish.has_4_bit_bnb, why)


def _ruling(option: str) -> _Build:
    parameter = option.removeprefix("--").replace("-", "_")
    why = "changes nothing of a recipe, which says the type of every tensor; change the recipe"
    return Need(option, parameter, lambda wish: not wish.only_searched, why)


def _publishing(option: str, parameter: str) -> _Build:
    why = "belongs to --publish NAMESPACE/NAME, which is missing"
    return Need(option, parameter, lambda wish: wish.options.publication.publish is not None, why)


def _searching(option: str, parameter: str) -> _Build:
    return Need(
        option,
        parameter,
        lambda wish: wish.options.budget.is_given,
        "is for a search, and none is asked for: it goes with --budget, --bpw and --for; leave it "
        "out",
    )


BUILD: tuple[_Build, ...] = (
    *map(_calibration, ("--text", "--chat", "--chunks", "--device")),
    Need(
        "--context",
        "context",
        lambda wish: wish.calibrates or wish.options.budget.machine is not None,
        "is for calibration and for --for, and this build has neither: it goes with --imatrix "
        "auto, with GPTQ quants and with --for; leave it out",
    ),
    _searching("--measured", "measured"),
    _searching("--types", "types"),
    _searching("--no-floor", "no_floor"),
    _searching("--compare", "compare"),
    _searching("--compare-text", "compare_text"),
    Need(
        "--compare-text",
        "compare_text",
        lambda wish: wish.options.contest.compare is not False,
        "is what candidates are measured on, and --no-compare measures none; leave one of them out",
    ),
    *map(_ruling, ("--tensor-type", "--output-tensor-type", "--token-embedding-type")),
    _gptq("--group-size", "group_size"),
    _gptq("--desc-act", "desc_act"),
    _gptq("--sym/--asym", "symmetric"),
    _gptq("--damp", "damp"),
    _gptq("--scale-search", "scale_search"),
    _bnb("--double-quant", "double_quant"),
    _bnb("--block-size", "block_size"),
    Need(
        "--keep",
        "keep",
        lambda wish: wish.has("bnb"),
        "is for bnb quants, and you asked for none; leave it out",
    ),
    Need(
        "--mmproj",
        "mmproj",
        lambda wish: wish.has("gguf"),
        "is for GGUF quants, and you asked for none; leave it out",
    ),
    Need(
        "--prove",
        "prove",
        lambda wish: wish.has("gguf"),
        "is for GGUF quants, and you asked for none; leave it out",
    ),
    Need(
        "--prove",
        "prove",
        lambda wish: wish.options.checks.smoke,
        "is part of what a smoke test records; leave out --no-smoke",
    ),
    Need(
        "--kernel",
        "kernel",
        lambda wish: wish.has("gguf"),
        "is for GGUF quants, and you asked for none; leave it out",
    ),
    Need(
        "--search",
        "search",
        lambda wish: wish.searches,
        "is for K-quants, and with an importance matrix for IQ1 to IQ4, and no tensor of what is "
        "asked for is one; leave it out",
    ),
    Need(
        "--imatrix auto",
        "imatrix",
        lambda wish: AUTO not in wish.options.encoding.imatrix or not wish.rounds or wish.weighs,
        "would calibrate for nothing: what is asked for is rounded the same way whatever the "
        "matrix says; "
        "leave it out",
    ),
    Need(
        "--tensor-type",
        "tensor_type",
        lambda wish: wish.has_blocks,
        "is for GGUF quants of fewer than 16 bits, and you asked for none; leave it out",
    ),
    Need(
        "--output-tensor-type",
        "output_tensor_type",
        lambda wish: wish.has("gguf"),
        "is for GGUF quants, and you asked for none; leave it out",
    ),
    Need(
        "--token-embedding-type",
        "token_embedding_type",
        lambda wish: wish.has("gguf"),
        "is for GGUF quants, and you asked for none; leave it out",
    ),
    Need(
        "--output-tensor-type beside --token-embedding-type",
        "output_tensor_type",
        lambda wish: wish.leaves_variants,
        "overrides both types that make a variant such as q6_k_l; ask for what they are variants "
        "of, or leave one of the options out",
    ),
    Need(
        "--imatrix",
        "imatrix",
        lambda wish: wish.rounds,
        "is for GGUF quants of fewer than 16 bits, and you asked for none; leave it out",
    ),
    Need(
        "--cluster",
        "cluster",
        lambda wish: wish.has("gguf", "bnb"),
        "is for GGUF and bnb quants: GPTQ needs one layer after the other and stays here; leave it "
        "out",
    ),
    Need(
        "--cluster-jobs",
        "cluster_jobs",
        lambda wish: wish.options.resources.cluster is not None,
        "needs --cluster; threads of this machine are --jobs",
    ),
    Need(
        "--max-disk",
        "max_disk",
        lambda wish: wish.options.publication.delete_published,
        "belongs to --delete-published, which is missing",
    ),
    Need(
        "--keep-source",
        "keep_source",
        lambda wish: wish.options.resources.cluster is None,
        "stores what this machine reads, and with --cluster the nodes read; leave one of them out",
    ),
    _publishing("--delete-published", "delete_published"),
    _publishing("--private", "private"),
    _publishing("--license", "license_"),
    _publishing("--base-model", "base_model"),
)


@dataclass(frozen=True, slots=True)
class CalibrateWish:
    """What of a calibration other options depend on; ``experts`` once the model is known."""

    random_tokens: bool
    is_gguf: bool = False
    lends: bool = True
    experts: int | None = None

    @property
    def has_experts(self) -> bool:
        """Whether the model is a mixture, or may be one."""
        return self.experts is None or self.experts > 0


def _of_checkpoints(option: str) -> Need[CalibrateWish]:
    parameter = option.removeprefix("--").replace("-", "_")
    why = "is for checkpoints, which quantkit runs itself; llama.cpp runs a GGUF, so leave it out"
    return Need(option, parameter, lambda wish: not wish.is_gguf, why)


def _of_text(option: str) -> Need[CalibrateWish]:
    why = f"does nothing beside --random-tokens, which runs without text; leave out {option}"
    return Need(option, option.removeprefix("--"), lambda wish: not wish.random_tokens, why)


CALIBRATE: tuple[Need[CalibrateWish], ...] = (
    *map(_of_checkpoints, ("--device", "--min-tokens", "--max-memory", "--random-tokens")),
    Need(
        "--gpu-layers",
        "gpu_layers",
        lambda wish: wish.is_gguf,
        "is for GGUFs, which llama.cpp runs; a checkpoint is run on a GPU by --device cuda",
    ),
    _of_text("--text"),
    _of_text("--chat"),
    Need(
        "--min-tokens",
        "min_tokens",
        lambda wish: wish.lends,
        "is for Mixtral: experts of other architectures borrow no tokens yet; leave it out",
    ),
    Need(
        "--min-tokens",
        "min_tokens",
        lambda wish: wish.has_experts,
        "is for experts, and this model has none; leave it out",
    ),
    Need(
        "--plot",
        "plot",
        lambda wish: wish.has_experts,
        "draws where the tokens of a MoE went; this model has no experts",
    ),
)
