"""What ``llama-quantize --dry-run`` says of a GGUF: types of tensors, and their size.

A dry run reads the header only. It asks of an importance matrix whether there is one: neither a
name nor a value in it changes a type.
"""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tests import native_tools
from tests.imatrix_writer import write_gguf_imatrix

# All that the pinned llama-quantize lists, without its two aliases (Q3_K, Q4_K, Q5_K) and COPY.
FILE_TYPES = (
    "Q1_0",
    "Q2_0",
    "Q4_0",
    "Q4_1",
    "MXFP4_MOE",
    "Q5_0",
    "Q5_1",
    "IQ2_XXS",
    "IQ2_XS",
    "IQ2_S",
    "IQ2_M",
    "IQ1_S",
    "IQ1_M",
    "TQ1_0",
    "TQ2_0",
    "Q2_K",
    "Q2_K_S",
    "IQ3_XXS",
    "IQ3_S",
    "IQ3_M",
    "IQ3_XS",
    "Q3_K_S",
    "Q3_K_M",
    "Q3_K_L",
    "IQ4_NL",
    "IQ4_XS",
    "Q4_K_S",
    "Q4_K_M",
    "Q5_K_S",
    "Q5_K_M",
    "Q6_K",
    "Q8_0",
    "F16",
    "BF16",
    "F32",
)

_TENSOR = re.compile(
    r"^\[ *\d+/ *(?P<count>\d+)\] (?P<name>\S+) +- \[(?P<shape>[ \d,]+)\], "
    r"type = *(?P<before>\w+), size = .*MiB(?: \((?P<after>\w+)\))?$",
    re.MULTILINE,
)
_TOTAL = re.compile(r"quant size *= *(\S+) MiB")


def dry_run(
    file: Path, ftype: str, imatrix: Path | None = None, options: Sequence[str] = ()
) -> dict[str, str]:
    """The type of each tensor after ``llama-quantize FILE FTYPE``, in the order of its output.

    Args:
        file: a GGUF, or the first of a split one; it may be sparse.
        ftype: one of `FILE_TYPES`, in any case, or of `native_tools.VARIANTS`.
        imatrix: an importance matrix, as `imatrix_of_nothing` makes one.
        options: further ones, such as ``["--pure"]`` or ``["--tensor-type", "ffn_down=q8_0"]``.

    Returns:
        Names and types in ggml's spelling, upper case: ``{"token_embd.weight": "Q6_K", ...}``.

    Raises:
        native_tools.ToolError: llama-quantize refuses the file.

    """
    return types(report(file, ftype, imatrix, options))


def report(file: Path, ftype: str, imatrix: Path | None = None, options: Sequence[str] = ()) -> str:
    """All that a dry run prints, for `types`, `mebibytes` and what it warns of."""
    matrix = [] if imatrix is None else ["--imatrix", str(imatrix)]
    tool = native_tools.tool("llama-quantize")
    if ftype in native_tools.VARIANTS:
        options = [*options, *native_tools.ENDS_IN_8_BITS]
    mixture = native_tools.VARIANTS.get(ftype, ftype)
    return native_tools.run([tool, "--dry-run", *matrix, *options, file, mixture])


def types(printed: str) -> dict[str, str]:
    """Types by name from a report, all of them or an error."""
    found = list(_TENSOR.finditer(printed))
    if not found or any(int(match["count"]) != len(found) for match in found):
        raise native_tools.ToolError(
            f"{len(found)} tensors were read from\n{native_tools.tail(printed)}"
        )
    return {match["name"]: (match["after"] or match["before"]).upper() for match in found}


def shapes(printed: str) -> dict[str, tuple[int, ...]]:
    """Shapes by name from a report, always four numbers, the length of a row first."""
    return {
        match["name"]: tuple(int(length) for length in match["shape"].split(","))
        for match in _TENSOR.finditer(printed)
    }


def mebibytes(printed: str) -> str:
    """The size of all tensors together from a report, as it is printed: with two decimals."""
    (total,) = _TOTAL.findall(printed)
    return str(total)


def imatrix_of_nothing(path: Path) -> Path:
    """Write an importance matrix that has no tensor of any model, and return its path."""
    return write_gguf_imatrix(path, {"nothing": (np.ones((1, 32)), np.ones(1))})
