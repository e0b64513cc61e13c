"""A checkpoint, the same as llama.cpp's converter turns it into GGUF, and quants of either."""

import json
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from quantkit.building.engine import build
from quantkit.building.work import prepare
from quantkit.checkpoint.checkpoint import Checkpoint
from quantkit.checkpoint.imatrix import Imatrix, load_imatrix
from quantkit.formats.layout import FileOptions
from quantkit.planning.quants import all_quants, find_quants
from quantkit.planning.recipe import EncodingOptions
from tests import native_tools
from tests.parity.cases import Case
from tests.parity.compare import differences

# Quants that llama-quantize refuses to make of ordinary rows without an importance matrix.
NEED_IMATRIX = (
    "iq3_xs",
    "iq3_xxs",
    "q2_k_s",
    "iq2_m",
    "iq2_s",
    "iq2_xs",
    "iq2_xxs",
    "iq1_m",
    "iq1_s",
)
_AS_USUAL = EncodingOptions()
ALL_QUANTS = tuple(all_quants())
PLAIN_QUANTS = tuple(name for name in ALL_QUANTS if name not in NEED_IMATRIX)

# The converter's own main, once for each job: most of its time goes into importing torch.
CONVERT = """
import json, runpy, sys, traceback
from pathlib import Path
converter, jobs = sys.argv[1:]
sys.path.insert(0, str(Path(converter).parent))
for folder, out, outtype in json.loads(Path(jobs).read_text()):
    sys.argv = [converter, folder, "--outfile", out, "--outtype", outtype]
    try:
        runpy.run_path(converter, run_name="__main__")
    except (Exception, SystemExit):
        Path(out).unlink(missing_ok=True)
        Path(out + ".failed").write_text(traceback.format_exc())
Path(jobs + ".done").touch()
"""


@dataclass(frozen=True)
class Source:
    """A checkpoint, its weights in the converter's GGUF, and what is to differ from it.

    ``requantize``: whether both are to encode what is stored in blocks already.
    """

    checkpoint: Path | Checkpoint
    converted: Path
    differs: Mapping[str, str] = field(default_factory=dict)
    requantize: bool = False

    def require(self) -> None:
        """Fail with what the converter said if it failed."""
        failed = Path(f"{self.converted}.failed")
        assert not failed.exists(), failed.read_text()

    def compare(
        self,
        quants: Iterable[str],
        folder: Path,
        *,
        imatrix: Path | None = None,
        tensor_types: Sequence[str] = (),
    ) -> None:
        """Build quants with quantkit and with llama-quantize and compare them byte for byte.

        Where something is to differ, it must, and nothing else may.
        """
        matrix = load_imatrix(imatrix) if imatrix is not None else None
        options = EncodingOptions(tensor_type=tuple(tensor_types))
        built = self.build(quants, folder / "ours", imatrix=matrix, encoding=options)

        def quantize(quant: str) -> Path:
            theirs = folder / f"theirs-{quant}.gguf"
            native_tools.quantize(
                self.converted,
                theirs,
                quant,
                imatrix=imatrix,
                tensor_types=tensor_types,
                requantize=self.requantize,
                threads=1,
            )
            return theirs

        wrong = []
        # Two at a time: llama-quantize spends much of its time in loading and on tables.
        with ThreadPoolExecutor(2) as pool:
            for quant, theirs in zip(built, pool.map(quantize, built), strict=True):
                found = []
                if built[quant].read_bytes() != theirs.read_bytes():
                    found = differences(built[quant], theirs)
                if {line.partition(":")[0] for line in found} != set(self.differs):
                    wrong += [f"{quant} differs:", *found]
                theirs.unlink()
                built[quant].unlink()
        assert not wrong, "\n".join(wrong)

    def build(
        self,
        quants: Iterable[str],
        out: Path,
        shard_size: int | None = None,
        *,
        name: str | None = None,
        encoding: EncodingOptions = _AS_USUAL,
        imatrix: Imatrix | None = None,
    ) -> dict[str, Path]:
        """Build quants with quantkit, all in one pass; the first file of each."""
        self.require()
        files = FileOptions(name, shard_size)
        work = prepare(self.checkpoint, find_quants(quants), files, encoding, imatrix=imatrix)
        artifacts = build(work, out, jobs=2, max_memory=2**30)
        return {artifact.layout.plan.quant.name: artifact.path for artifact in artifacts}


def convert(base: Path, cases: Mapping[str, Case]) -> dict[str, Source]:
    """Write the checkpoints of cases below a folder and convert each."""
    sources, jobs = {}, []
    for name, case in cases.items():
        checkpoint = readable = base / "checkpoints" / name
        checkpoint.parent.mkdir(exist_ok=True)
        case.write(checkpoint)
        if case.write_readable is not None:
            # In a folder of the same name, because names of models come from those of folders.
            readable = base / "readable" / name
            readable.parent.mkdir(exist_ok=True)
            case.write_readable(readable)
        sources[name] = Source(checkpoint, base / f"{name}.gguf", case.differs)
        jobs.append([str(readable), str(sources[name].converted), case.outtype])
    script, listing = base / "convert.py", base / "jobs.json"
    script.write_text(CONVERT)
    listing.write_text(json.dumps(jobs))
    native_tools.run(
        [native_tools.PYTHON, script, native_tools.CONVERTER, listing],
        makes=Path(f"{listing}.done"),
    )
    return sources
