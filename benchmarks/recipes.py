"""Searched recipes against fixed mixtures, at their exact sizes: mean KLD on held-out text.

``python -m benchmarks.recipes CHECKPOINT --work FOLDER`` calibrates, measures errors and
sensitivities, searches recipes of the size of each mixture, builds both and compares them in
llama.cpp with the unquantized model. Four texts are disjoint: for the importance matrix, for
sensitivities, for the choice between ways of measuring (``--judged-on choice``), and for the
judgement. By default the first three are thirds of what the tiny checkpoints were trained on, and
the last is what they never saw; ``--texts`` gives four files. Beside the measured pass, recipes are
searched by

- the weight error alone: squared error times importance, every tensor alike;
- the relative weight error alone: that over the weights' squares, every weight alike;
- a rule of thumb: attention, output and embeddings in Q8_0, the rest by its weight error;
- the measured pass with the floors of ``profiles/recipes.toml``, which the others are without;
- ``--specimens``: sensitivities by llama.cpp over files in q8_0 of which one tensor is in Q2_K.

Every file has at most the bytes of the mixture's. The status is 1 if the geometric mean of the
ratios to the mixtures is above ``--most``, a ratio is above 1, or another way wins.
"""

import argparse
import json
import os
import re
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import exp, log
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from quantkit.building.engine import build
from quantkit.building.work import prepare
from quantkit.calibration.calibrate import calibrate
from quantkit.calibration.settings import Settings
from quantkit.calibration.sources import TextSource
from quantkit.calibration.text import Corpus, make_corpus
from quantkit.checkpoint.imatrix import load_imatrix
from quantkit.checkpoint.open import open_checkpoint, open_model
from quantkit.checkpoint.rows import open_rows
from quantkit.encodings.encoding import Encoding, encoding
from quantkit.encodings.kernel import load_kernel
from quantkit.encodings.widen import widen
from quantkit.formats.layout import FileOptions
from quantkit.planning.plan import make_plan
from quantkit.planning.quants import all_quants
from quantkit.planning.recipe import EncodingOptions
from quantkit.recipes.candidates import all_floors, offer
from quantkit.recipes.errors import measure_errors
from quantkit.recipes.search import Choice, Search
from quantkit.recipes.sensitivity import measure_sensitivities
from quantkit.verification.compare import compare
from quantkit.verification.subjects import open_subject
from tests.checkpoints.text import heldout_text, training_text

QUANTS = ("q2_k", "q3_k_m", "q4_k_m", "q5_k_m")
TEXTS = ("calibration", "sensitivity", "choice", "judgement")
FIXED, PASS, FLOORS, SPECIMENS = "fixed", "pass", "pass, floors", "specimens"
WEIGHTS, RELATIVE, THUMB = "weight error", "relative error", "thumb"
GUARDED = re.compile(r"\.attn_|^output\.|^token_embd\.")
MEMORY = 2**30
SPECIMEN = "Q2_K"

console = Console(stderr=True)


@dataclass(frozen=True, slots=True)
class Built:
    """A file that was judged: mean KLD and its standard error, in nats."""

    quant: str
    way: str
    n_bytes: int
    kld: float
    kld_pm: float
    tokens_per_second: float
    predicted: float | None


class Bench:
    """One checkpoint, what was measured of it, and the files that were built of it."""

    def __init__(self, checkpoint: Path, work: Path, texts: Sequence[Path], chunks: int) -> None:
        self.folder, self.work, self.chunks = checkpoint, work, chunks
        self.texts = dict(zip(TEXTS, texts or list(_default_texts(work)), strict=True))
        self.checkpoint = open_checkpoint(checkpoint)
        self.model = open_model(self.checkpoint)
        self.kernel = load_kernel("fast")
        self.seconds: dict[str, float] = {}
        began = time.monotonic()
        path = work / "imatrix.gguf"
        calibrate(self.checkpoint, self.model, self.corpus("calibration"), path, Settings())
        self.seconds["calibration"] = time.monotonic() - began
        self.imatrix = load_imatrix(path)
        targets = self.model.targets
        weighted = {t.name for t in targets if self.imatrix.columns_of(t) is not None}
        kinds = offer(self.model, weighted, lifted=all_floors(), unquantized=False)
        self.targets = [one.target for one in kinds]
        self.offered = {one.target.name: one.encodings for one in kinds}
        kinds = offer(self.model, weighted, unquantized=False)
        self.floored = {one.target.name: one.encodings for one in kinds}

    def corpus(self, text: str) -> Corpus:
        """Windows of one of the texts."""
        return make_corpus(self.checkpoint, [TextSource(self.texts[text])], self.chunks, 512)

    @cached_property
    def errors(self) -> dict[tuple[str, str], float]:
        """The relative weighted errors."""
        began = time.monotonic()
        found = measure_errors(
            self.checkpoint, self.model, self.offered, self.imatrix, self.kernel, say=console.print
        )
        self.seconds["errors"] = time.monotonic() - began
        return found

    @cached_property
    def by_pass(self) -> dict[str, float]:
        """Sensitivities by one pass there and back."""
        began = time.monotonic()
        found = measure_sensitivities(
            self.checkpoint, self.model, self.corpus("sensitivity"), Settings()
        )
        self.seconds["pass"] = time.monotonic() - began
        return found

    @cached_property
    def by_specimens(self) -> dict[str, float]:
        """Sensitivities by files of which one tensor is in few bits."""
        began = time.monotonic()
        names = [target.name for target in self.targets]
        files = [self.built("specimen", "q8_0", {})]
        files += [self.built(f"specimen-{name}", "q8_0", {name: SPECIMEN}) for name in names]
        results = self.compared(files, "sensitivity", self.chunks)
        base, *klds = [result[0] for result in results]
        self.seconds["specimens"] = time.monotonic() - began
        least = 1e-9  # where a specimen is as good as q8_0
        return {
            name: max(kld - base, least) / self.errors[name, SPECIMEN]
            for name, kld in zip(names, klds, strict=True)
        }

    @cached_property
    def by_weights(self) -> dict[str, float]:
        """The weighted squares of each tensor: with its relative error, its absolute one."""
        read = open_rows(self.checkpoint)
        found = {}
        for target in self.targets:
            columns = self.imatrix.columns_of(target)
            total = 0.0
            for number, block in enumerate(target.blocks):
                matrix = block.matrix or 0
                raw = read(block.source, matrix * block.rows + block.row, block.rows)
                rows = widen(raw, self.checkpoint.tensors[block.source].dtype)
                squares = np.square(rows.reshape(block.rows, -1)).sum(axis=0, dtype=np.float64)
                total += float(squares.sum() if columns is None else squares @ columns[number])
            found[target.name] = total
        return found

    def budget(self, quant: str) -> int:
        """Bytes of the tensors that there is a choice for, in a mixture."""
        plan = make_plan(self.model, all_quants()[quant], self.imatrix)
        return sum(tensor.n_bytes for tensor in plan.tensors if tensor.target.name in self.offered)

    def search(
        self,
        n_bytes: int,
        sensitivities: Mapping[str, float],
        offered: Mapping[str, Sequence[Encoding]] | None = None,
    ) -> dict[str, str] | None:
        """The best recipe, None if the smallest is larger."""
        units = []
        for target in self.targets:
            name = target.name
            kinds = (offered or self.offered)[name]
            units.append(
                [
                    Choice(
                        kind.name,
                        kind.row_bytes(target.columns) * target.n_rows,
                        sensitivities[name] * self.errors[name, kind.name],
                    )
                    for kind in kinds
                ]
            )
        search = Search(units)
        if search.smallest > n_bytes:
            return None
        chosen = search.choose(n_bytes)
        return {
            target.name: unit[at].encoding
            for target, unit, at in zip(self.targets, units, chosen, strict=True)
        }

    def thumb(self, n_bytes: int) -> dict[str, str] | None:
        """What is `GUARDED` in the largest encoding that leaves enough bytes for the others."""
        for guard in ("Q8_0", "Q6_K", "Q5_K", "Q4_K"):
            offered = {
                name: [encoding(guard)] if GUARDED.search(name) else kinds
                for name, kinds in self.offered.items()
            }
            if (found := self.search(n_bytes, self.by_weights, offered)) is not None:
                return found
        return None

    def built(self, name: str, quant: str, types: Mapping[str, str]) -> Path:
        """A GGUF file of a recipe."""
        out = self.work / name
        if not (found := list(out.glob("*.gguf"))):
            work = prepare(
                self.checkpoint,
                [all_quants()[quant]],
                FileOptions("m"),
                EncodingOptions(
                    tensor_type=tuple(f"^{re.escape(name)}$={kind}" for name, kind in types.items())
                ),
                imatrix=self.imatrix,
            )
            out.mkdir(exist_ok=True)
            found = [artifact.path for artifact in build(work, out, jobs=1, max_memory=MEMORY)]
        return found[0]

    def compared(
        self, files: Sequence[Path], text: str, windows: int | None = None
    ) -> list[tuple[float, float, float]]:
        """Mean KLD, its standard error and tokens per second, of each file."""
        comparison = compare(
            [open_subject(file) for file in files],
            open_subject(self.built("reference", "bf16", {})),
            text=self.texts[text],
            windows=windows,
        )
        found = []
        for result in comparison.results:
            if result.is_reference:
                continue
            assert result.measures is not None, result.verdict.reason
            speed = result.speed.prompt_tokens_per_second if result.speed else 0.0
            found.append((result.measures.kld, result.measures.kld_pm, speed or 0.0))
        return found


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--work", type=Path, required=True, help="a folder for what is made")
    parser.add_argument("--texts", type=Path, nargs=4, metavar=tuple(t.upper() for t in TEXTS))
    parser.add_argument("--quants", nargs="+", default=QUANTS)
    parser.add_argument("--chunks", type=int, default=32, help="of 512 tokens, to measure on")
    parser.add_argument("--specimens", action="store_true")
    parser.add_argument("--judged-on", choices=("choice", "judgement"), default="judgement")
    parser.add_argument("--most", type=float, default=1.0, help="the geometric mean, at most")
    parser.add_argument("--json", type=Path, help="write every figure to this file")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    bench = Bench(options.checkpoint, options.work, options.texts or (), options.chunks)
    alike = {target.name: float(target.n_elements) for target in bench.targets}
    measured = {PASS: bench.by_pass, WEIGHTS: bench.by_weights, RELATIVE: alike}
    if options.specimens:
        measured[SPECIMENS] = bench.by_specimens
    found = [
        built
        for quant in options.quants
        for built in run(bench, quant, measured, options.judged_on)
    ]
    console.print(table(found, options.judged_on), soft_wrap=True)
    for what, seconds in bench.seconds.items():
        console.print(f"{what}: {seconds:.1f} s")
    if options.json:
        options.json.write_text(json.dumps(_document(bench, measured, found), indent=1))
    return int(not holds(found, options.most))


def run(
    bench: Bench, quant: str, measured: Mapping[str, Mapping[str, float]], text: str
) -> list[Built]:
    """Build and compare files of the size of one mixture."""
    budget = bench.budget(quant)
    recipes: dict[str, Mapping[str, str] | None] = {FIXED: {}}
    recipes |= {way: bench.search(budget, found) for way, found in measured.items()}
    recipes[FLOORS] = bench.search(budget, measured[PASS], bench.floored)
    recipes[THUMB] = bench.thumb(budget)
    files = {
        way: bench.built(f"{quant}-{re.sub('[ ,]+', '-', way)}", quant, types)
        for way, types in recipes.items()
        if types is not None
    }
    results = bench.compared(list(files.values()), text)
    built = []
    for (way, file), (kld, pm, speed) in zip(files.items(), results, strict=True):
        predicted = None
        if types := recipes[way] if way in (PASS, FLOORS, SPECIMENS) else None:
            by = measured[PASS if way == FLOORS else way]
            predicted = sum(by[name] * bench.errors[name, kind] for name, kind in types.items())
        built.append(Built(quant, way, file.stat().st_size, kld, pm, speed, predicted))
    return built


def ratios(found: Sequence[Built], way: str) -> dict[str, float]:
    """KLD of a way's files by that of the mixtures, by quant."""
    fixed = {built.quant: built.kld for built in found if built.way == FIXED}
    return {b.quant: b.kld / fixed[b.quant] for b in found if b.way == way}


def mean_of(values: Mapping[str, float]) -> float:
    """The geometric mean."""
    return exp(sum(map(log, values.values())) / len(values))


def holds(found: Sequence[Built], most: float) -> bool:
    """Whether the measured pass does what is asked of it."""
    ours = ratios(found, PASS)
    others = (ratios(found, way) for way in (WEIGHTS, RELATIVE, THUMB))
    beats = all(
        mean_of({quant: ours[quant] for quant in other}) < mean_of(other)
        for other in others
        if other
    )
    return mean_of(ours) <= most and max(ours.values()) <= 1 and beats


def table(found: Sequence[Built], text: str) -> Table:
    """Every file, and the geometric means."""
    drawn = Table(title=f"Mean KLD on the text for {text}", title_justify="left")
    for heading in ("quant", "recipe"):
        drawn.add_column(heading)
    for heading in ("bytes", "of the mixture's", "KLD", "±", "ratio", "predicted", "tokens/s"):
        drawn.add_column(heading, justify="right")
    fixed = {built.quant: built for built in found if built.way == FIXED}
    for b in found:
        size = b.n_bytes / fixed[b.quant].n_bytes
        drawn.add_row(
            b.quant,
            b.way,
            f"{b.n_bytes:,}",
            f"{size:.4f}",
            f"{b.kld:.5f}",
            f"{b.kld_pm:.5f}",
            f"{b.kld / fixed[b.quant].kld:.3f}",
            "" if b.predicted is None else f"{b.predicted:.5f}",
            f"{b.tokens_per_second:.0f}",
        )
    for way in dict.fromkeys(b.way for b in found if b.way != FIXED):
        drawn.add_row("all", way, "", "", "", "", f"{mean_of(ratios(found, way)):.3f}", "", "")
    return drawn


def _default_texts(work: Path) -> Iterator[Path]:
    trained = training_text()
    third = len(trained) // 3
    parts = [trained[n * third : (n + 1) * third] for n in range(3)]
    for name, text in zip(TEXTS, [*parts, heldout_text()], strict=True):
        path = work / f"{name}.txt"
        path.write_text(text, encoding="utf-8")
        yield path


def _document(
    bench: Bench, measured: Mapping[str, Mapping[str, float]], found: Sequence[Built]
) -> dict[str, object]:
    from dataclasses import asdict

    return {
        "files": [asdict(built) for built in found],
        "seconds": bench.seconds,
        "sensitivities": measured,
        "errors": {f"{name} {kind}": error for (name, kind), error in bench.errors.items()},
    }


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
