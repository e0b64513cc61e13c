"""The picture at the top of README.md: size against KL divergence, mixtures and searched recipes.

``python -m benchmarks.picture`` draws it from the figures kept beside it. With ``--measure FOLDER``
it first builds tiny-mixtral both ways in that folder, without an importance matrix, compares all
files with the bf16 one, and keeps the figures.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
MODEL = ROOT / "tests" / "checkpoints" / "tiny-mixtral"
PICTURES = ROOT / "docs" / "pictures"
FIGURES = PICTURES / "size-against-kld.json"
FIXED = (
    "q2_k",
    "q3_k_s",
    "q3_k_m",
    "q3_k_l",
    "q4_k_s",
    "q4_k_m",
    "q5_k_s",
    "q5_k_m",
    "q6_k",
    "q8_0",
)
SEARCHED = ("q2_k", "q3_k_s", "q3_k_m", "q3_k_l", "q4_k_s", "q4_k_m", "q5_k_s", "q5_k_m", "q6_k")
_COLOURS = ("ink", "paper", "grid", "fixed", "ours")
_LIGHT = ("#24292f", "#ffffff", "#d0d7de", "#8c6d1f", "#0969da")
_DARK = ("#e6edf3", "#0d1117", "#30363d", "#d4a72c", "#58a6ff")
SCHEMES = {
    "": dict(zip(_COLOURS, _LIGHT, strict=True)),
    "-dark": dict(zip(_COLOURS, _DARK, strict=True)),
}


def measure(folder: Path) -> dict[str, Any]:
    """Build both kinds in a folder and compare them; what each file has and loses."""
    fixed, searched = folder / "fixed", folder / "searched"
    _quantkit("build", MODEL, "-q", "bf16", *(x for q in FIXED for x in ("-q", q)), "-o", fixed)
    sizes = {quant: _file(fixed, f"-{quant.upper()}.gguf").stat().st_size for quant in SEARCHED}
    for quant, size in sizes.items():
        _quantkit("build", MODEL, "--budget", f"{size}B", "-o", searched / quant)
    files = [*fixed.glob("*.gguf"), *searched.glob("*/*.gguf")]
    found = json.loads(_quantkit("compare", *files, "--json"))
    by_place = zip(files, found["artifacts"], strict=True)
    points: dict[str, list[Any]] = {"fixed": [], "searched": []}
    for file, row in by_place:
        assert row["bytes"] == file.stat().st_size
        if not row["is_reference"]:
            kind = "fixed" if file.parent == fixed else "searched"
            point = {"name": row["quant"] if kind == "fixed" else "", "bytes": row["bytes"]}
            points[kind].append({**point, "kld": row["measures"]["kld"]})
    for some in points.values():
        some.sort(key=lambda point: point["bytes"])
    keys = ("text", "text_sha256", "context", "windows")
    return {"model": MODEL.name, **{key: found[key] for key in keys}, **points}


def _quantkit(*arguments: object) -> str:
    command = [sys.executable, "-m", "quantkit", *map(str, arguments)]
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout


def _file(folder: Path, ending: str) -> Path:
    [file] = folder.glob(f"*{ending}")
    return file


def draw(figures: dict[str, Any], scheme: dict[str, str], file: Path) -> None:
    """Draw the picture in some colours, as SVG whose letters are paths: alike in every browser."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    from quantkit.verification.labels import place_labels

    ink = scheme["ink"]
    with rc_context({"svg.hashsalt": "quantkit", "axes.edgecolor": scheme["grid"]}):
        figure = Figure(figsize=(7.6, 4.2), layout="constrained", facecolor=scheme["paper"])
        axes = figure.add_subplot(facecolor=scheme["paper"])
        axes.set_yscale("log")
        lines = {}
        for kind, colour in (("fixed", scheme["fixed"]), ("searched", scheme["ours"])):
            lines[kind] = [(point["bytes"] / 1e6, point["kld"]) for point in figures[kind]]
            mark = "o-" if kind == "searched" else "s--"
            axes.plot(*zip(*lines[kind], strict=True), mark, color=colour, markersize=5, zorder=2)
        axes.margins(x=0.1, y=0.1)
        axes.set_xlabel(f"size of {figures['model']}, MB", color=ink)
        axes.set_ylabel("mean KL divergence, nats per token", color=ink)
        axes.tick_params(which="both", colors=ink)
        axes.grid(visible=True, which="major", color=scheme["grid"], linewidth=0.6)
        fixed, searched = lines["fixed"], lines["searched"]
        where: dict[str, Any] = {"transform": axes.transAxes, "fontsize": 10, "va": "bottom"}
        axes.text(0.97, 0.93, "fixed mixtures", color=scheme["fixed"], ha="right", **where)
        axes.text(0.97, 0.86, "searched by quantkit", color=scheme["ours"], ha="right", **where)
        names = [point["name"] for point in figures["fixed"]]
        place_labels(
            figure,
            axes,
            fixed,
            names,
            lines=(fixed, searched),
            also=searched,
            fontsize=8,
            color=ink,
        )
        figure.savefig(file, metadata={"Date": None})


def main() -> None:
    """Measure if asked to, then draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--measure", type=Path, metavar="FOLDER")
    folder = parser.parse_args().measure
    if folder is not None:
        FIGURES.write_text(json.dumps(measure(folder), indent=1) + "\n", encoding="utf-8")
    figures = json.loads(FIGURES.read_text(encoding="utf-8"))
    for name, scheme in SCHEMES.items():
        draw(figures, scheme, PICTURES / f"size-against-kld{name}.svg")


if __name__ == "__main__":
    main()
