"""Figures against ``llama-perplexity --kl-divergence`` on the same text, context and files.

The tool runs with llama-cpp-python's libraries. Its own are compiled for any x86-64 and those for
this very processor, so the two add numbers in different orders; that moves a rounded activation
here and there, and in a mixture of experts it flips the routing of single tokens.
"""

import re
from pathlib import Path

import numpy as np
import pytest

from quantkit.encodings.ggml import library_path
from quantkit.verification.compare import compare, default_text
from quantkit.verification.divergence import Measures, Tally, unpack_log_probs
from quantkit.verification.reference import read_text, read_window
from quantkit.verification.subjects import open_subject
from tests import native_tools
from tests.building.builds import build

pytestmark = pytest.mark.native

CHECKPOINTS = Path(__file__).parents[1] / "checkpoints"
QUANTS = ("q8_0", "q6_k", "q4_k_m", "iq4_xs", "q2_k")
WINDOWS = 8
LIMIT = 1e-3
PRINTED = 0.51e-6  # the tool prints six decimals


@pytest.fixture(scope="module", params=["tiny-mixtral", "tiny-mistral"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("divergence") / str(request.param)
    build(CHECKPOINTS / request.param, out, "f32", *QUANTS)
    (out / "text").write_text(default_text(), encoding="utf-8")
    record(out, "f32")
    return out


def of(folder: Path, quant: str) -> Path:
    [file] = folder.glob(f"*-{quant.upper()}.gguf")
    return file


def tool(folder: Path, quant: str, *options: str | Path) -> str:
    evaluation = [*native_tools.evaluation(512, 1), "--chunks", str(WINDOWS), "--no-repack"]
    return native_tools.run(
        [native_tools.tool("llama-perplexity"), "-m", of(folder, quant), *evaluation, *options],
        libraries=library_path().parent,
        linger=True,
    )


def record(folder: Path, quant: str) -> Path:
    file = folder / f"{quant}.kld"
    tool(folder, quant, "-f", folder / "text", "--kl-divergence-base", file)
    return file


def printed(folder: Path, quant: str) -> dict[str, float]:
    """What the tool says of a quant."""
    output = tool(folder, quant, "--kl-divergence-base", folder / "f32.kld", "--kl-divergence")
    number = r"\s*(-?[\d.]+)(?:\s*±\s*([\d.]+))?"
    names = {
        "ppl": r"Mean PPL\(Q\)\s*:",
        "ppl_reference": r"Mean PPL\(base\)\s*:",
        "ppl_ratio": r"Mean PPL\(Q\)/PPL\(base\)\s*:",
        "kld": r"Mean\s+KLD:",
        "median": r"Median\s+KLD:",
        "90": r"90.0%\s+KLD:",
        "95": r"95.0%\s+KLD:",
        "99": r"99.0%\s+KLD:",
        "99.9": r"99.9%\s+KLD:",
        "max": r"Maximum KLD:",
        "same_top": r"Same top p:",
    }
    found = {}
    for name, label in names.items():
        match = re.search(label + number, output)
        assert match is not None, output
        found[name] = float(match[1])
        if match[2]:
            found[f"{name}_pm"] = float(match[2])
    return found


def as_printed(measures: Measures) -> dict[str, float]:
    shares = dict(zip(("median", "90", "95", "99", "99.9"), measures.kld_percentiles, strict=True))
    names = ("ppl", "ppl_reference", "ppl_ratio", "kld")
    own = {name: getattr(measures, name) for name in names}
    own |= {f"{name}_pm": getattr(measures, f"{name}_pm") for name in names}
    own |= {"same_top": 100 * measures.same_top, "same_top_pm": 100 * measures.same_top_pm}
    return own | shares | {"max": measures.kld_max}


def off(ours: dict[str, float], theirs: dict[str, float]) -> dict[str, float]:
    """Relative differences beyond the last printed digit."""
    result = {}
    for name, value in theirs.items():
        last = 0.51e-3 if name.startswith("same_top") else PRINTED
        result[name] = max(0.0, abs(ours[name] - value) - last) / abs(value)
    return result


def test_the_same_log_probabilities_give_the_same_figures(folder: Path) -> None:
    # The tool rounds what it records, here of the quant too: a mean does not feel that, and for
    # quants that differ by much more than the rounding the percentiles do not either.
    reference = read_text(folder / "f32.kld")
    for quant in ("q4_k_m", "q2_k"):
        recorded = record(folder, quant)
        text = read_text(recorded)
        assert (text.tokens == reference.tokens).all()
        tally = Tally()
        for index in range(text.n_windows):
            log_p = unpack_log_probs(read_window(recorded, text, index), text.n_vocab)
            packed = read_window(folder / "f32.kld", reference, index)
            tally.add(log_p, packed, np.asarray(text.tokens[index, text.first + 1 :]))
        found = off(as_printed(tally.measures()), printed(folder, quant))
        assert {name: gap for name, gap in found.items() if gap > _limit(name)} == {}, quant


def _limit(name: str) -> float:
    """Percentiles are single tokens, and feel the second rounding."""
    return LIMIT if name.startswith(("ppl", "kld", "same_top")) else 10 * LIMIT


def test_whole_runs_give_the_same_figures(folder: Path) -> None:
    reference = open_subject(of(folder, "f32"))
    comparison = compare(
        [open_subject(of(folder, quant)) for quant in QUANTS],
        reference,
        text=folder / "text",
        windows=WINDOWS,
        threads=1,
        cache=folder / "cache",
    )
    for quant, result in zip(QUANTS, comparison.results[1:], strict=True):
        assert result.measures is not None
        found = off(as_printed(result.measures), printed(folder, quant))
        assert {name: gap for name, gap in found.items() if gap > LIMIT} == {}, quant
