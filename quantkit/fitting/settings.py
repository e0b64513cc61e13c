"""How a model is to be run: its context, how many at a time, how its cache is stored."""

from dataclasses import dataclass, replace

from quantkit.core.errors import QuantkitError
from quantkit.core.printable import quoted
from quantkit.encodings.encoding import encoding
from quantkit.fitting.shape import Shape

KV_TYPES = ("f16", "q8_0", "q4_0")
CELLS = 256  # llama.cpp rounds a context up to a multiple of this
LONGEST = 2**24  # tokens of all sequences that are tried: even a dry run has memory for each
MOST_PARALLEL = 256  # sequences at a time (LLAMA_MAX_SEQ of llama.cpp's src/llama-cparams.h)
USUAL_CONTEXT = 8192  # tokens, where none are asked for


class FitError(QuantkitError):
    """A question about memory that makes no sense, or that llama.cpp would refuse."""


@dataclass(frozen=True, slots=True)
class ContextSettings:
    """How the model is to be run.

    ``context`` is what each of ``parallel`` sequences gets, in tokens; 0 stands for the usual one
    of a model (`usual_for`). ``kv_type`` is one of ``KV_TYPES``, for keys and values alike.
    """

    context: int = 0
    parallel: int = 1
    kv_type: str = "f16"
    flash_attn: bool = True

    @property
    def cells(self) -> int:
        """The context as llama.cpp makes it, per sequence."""
        return -(-self.context // CELLS) * CELLS

    def usual_for(self, shape: Shape) -> "ContextSettings":
        """The same with a context: what most ask for, or all that the model was trained for."""
        if self.context:
            return self
        return replace(self, context=min(USUAL_CONTEXT, shape.n_ctx_train))


def check_settings(shape: Shape, settings: ContextSettings) -> None:
    """Refuse what llama.cpp would refuse.

    Raises:
        FitError: the context is none or longer than any, the KV type is none, needs flash
            attention, or heads of another length.

    """
    if settings.context < 1 or settings.parallel < 1:
        raise FitError(
            f"{settings.parallel} contexts of {settings.context} tokens are none; give 1 or more "
            "of each."
        )
    if settings.parallel > MOST_PARALLEL:
        raise FitError(
            f"{settings.parallel} sequences at a time are more than llama.cpp's {MOST_PARALLEL}; "
            "give fewer."
        )
    if settings.kv_type not in KV_TYPES:
        raise FitError(
            f"A KV cache has no type {quoted(settings.kv_type)}; it is {', '.join(KV_TYPES)}."
        )
    wanted = settings.context * settings.parallel
    if wanted > LONGEST:
        raise FitError(
            f"Contexts of {wanted:,} tokens are more than the {LONGEST:,} that can be tried; give "
            "a shorter --context, or fewer at a time with --parallel."
        )
    kind = encoding(settings.kv_type.upper())
    if kind.is_block and not settings.flash_attn:
        raise FitError(
            f"A KV cache of type {settings.kv_type} needs flash attention; leave out "
            "--no-flash-attn, or use --kv-type f16."
        )
    for length in (shape.key_length, shape.value_length):
        if length is not None and not kind.holds_rows_of(length):
            raise FitError(
                f"A KV cache of type {settings.kv_type} needs heads of a multiple of "
                f"{kind.elements} numbers, and this model's have {length}; use --kv-type f16."
            )
