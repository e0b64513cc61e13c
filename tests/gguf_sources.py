"""GGUFs to build from: unquantized ones, as quantkit makes them of a checkpoint."""

from pathlib import Path

from quantkit.building.work import prepare
from quantkit.formats.layout import FileOptions
from quantkit.planning.quants import find_quants
from tests.building.builds import build_work


def unquantized(
    checkpoint: Path,
    folder: Path,
    *,
    quant: str = "bf16",
    shard_size: int | None = None,
    name: str | None = None,
) -> Path:
    """The first file of a checkpoint's GGUF in a folder, which has nothing else."""
    work = prepare(checkpoint, find_quants([quant]), FileOptions(name, shard_size))
    build_work(work, folder)
    (folder / "quantkit.json").unlink()
    for file in list(folder.glob("*/*.gguf")):
        file.rename(folder / file.name)
    for empty in [place for place in folder.iterdir() if place.is_dir()]:
        empty.rmdir()
    return min(folder.glob("*.gguf"))
