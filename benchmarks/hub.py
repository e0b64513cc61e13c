"""Build a 4 GB checkpoint straight from a Hub and publish it, through a small disk.

``python benchmarks/hub.py`` serves a random Mixtral of three layers from a server of our own, drops
every 20th connection, builds two quants in shards, each sent and deleted once it is finished, and
watches the disk: the output folder and huggingface_hub's cache. The status is 1 if more than 1.5 GB
were in use, if more than 1.05 times the checkpoint came over the wire, or if a published shard is
not what a local build makes (``--compare``, which takes as much disk as all quants).
"""

import argparse
import hashlib
import json
import os
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rich.console import Console

from quantkit.core.units import format_size
from tests.hub_both import serve_both
from tests.hub_server import HubServer, content_hash
from tests.hub_writes import WRITER, HubStore
from tests.large_checkpoints import large_checkpoint
from tests.measured import Cost, disk_use, measure, unwind_on_sigterm

SHAPE: dict[str, Any] = {
    "num_hidden_layers": 3,
    "hidden_size": 4096,
    "intermediate_size": 6400,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
}
MOST_DISK = 1500 * 10**6
MOST_TRANSFERRED = 1.05
REPO = "someone-else/Model-GGUF"
console = Console(highlight=False)


def main() -> int:
    options = parse_options()
    unwind_on_sigterm()
    with TemporaryDirectory(prefix="quantkit-hub-", dir=options.folder) as name:
        folder = Path(name)
        checkpoint = large_checkpoint(folder / "Model", shard_size=10**9, **SHAPE)
        (checkpoint / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
        for file in checkpoint.iterdir():
            content_hash(file)  # which the server is asked for at once otherwise
        hub, store = HubServer(checkpoint, drop_every=20), HubStore()
        with serve_both(hub, store):
            cost = build(folder / "build", hub.url, options)
        source, sent = disk_use(checkpoint), hub.bytes_sent
        same = compare(checkpoint, folder, store, options) if options.compare else None
    published = store.repos[REPO]
    figures: dict[str, Any] = {
        "checkpoint_bytes": source,
        "transferred_bytes": sent,
        "transferred_ratio": sent / source,
        "published_bytes": sum(map(len, published.values())),
        "published_files": len(published),
        "peak_disk_bytes": cost.peak_disk,
        "peak_memory_bytes": cost.peak_memory,
        "wall_seconds": cost.wall_seconds,
        "cpu_seconds": cost.cpu_seconds,
        "same_as_local": same,
    }
    console.print(
        f"{format_size(source)} of checkpoint, {format_size(figures['published_bytes'])} in "
        f"{len(published)} files published; {sent / source:.4f} times the checkpoint transferred; "
        f"at most {format_size(cost.peak_disk)} of disk and {format_size(cost.peak_memory)} of "
        f"memory; {cost.wall_seconds:.0f} s"
        + ("" if same is None else f"; the same as a local build: {same}")
    )
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")
    fine = cost.peak_disk <= MOST_DISK and sent <= MOST_TRANSFERRED * source and same is not False
    return 0 if fine else 1


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--quants", nargs="+", default=["q8_0", "q4_k_m"])
    parser.add_argument("--shard-size", default="250MB")
    parser.add_argument("--max-disk", default="1.4GB")
    parser.add_argument("--jobs", default="2")
    parser.add_argument("--compare", action="store_true", help="build locally too, and compare")
    parser.add_argument("--folder", help="work on this disk; the checkpoint takes 4 GB")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    return parser.parse_args()


def quantkit(options: argparse.Namespace, *arguments: str | Path) -> list[str | Path]:
    quants = [word for quant in options.quants for word in ("--quant", quant)]
    given = ["--shard-size", options.shard_size, "--jobs", options.jobs, "--no-smoke"]
    return [sys.executable, "-m", "quantkit", "build", *arguments, *quants, *given]


def build(folder: Path, url: str, options: argparse.Namespace) -> Cost:
    """Build in a folder that holds everything which the build stores."""
    folder.mkdir()
    cache = folder / "huggingface"
    os.environ |= {"HF_ENDPOINT": url, "HF_HOME": str(cache), "HF_HUB_DISABLE_XET": "1"}
    os.environ["HF_TOKEN"] = WRITER
    publish = ("--publish", REPO, "--delete-published", "--max-disk", options.max_disk)
    return measure(quantkit(options, "someone/Model", "-o", folder / "out", *publish), folder)


def compare(checkpoint: Path, folder: Path, store: HubStore, options: argparse.Namespace) -> bool:
    """Whether every published shard is what a local build makes."""
    measure(quantkit(options, checkpoint, "-o", folder / "local"))
    made = {
        path.relative_to(folder / "local").as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in (folder / "local").rglob("*.gguf")
    }
    there = store.repos[REPO]
    return made == {
        name: hashlib.sha256(data).hexdigest()
        for name, data in there.items()
        if name.endswith(".gguf")
    }


if __name__ == "__main__":
    sys.exit(main())
