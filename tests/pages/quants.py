"""docs/quants.md, from what ``quantkit quants --json`` prints: ``python -m tests.pages.quants``."""

import json
import subprocess
import sys
from typing import Any

from tests.pages.blocks import ROOT

PAGE = ROOT / "docs" / "quants.md"
_MODEL = "Mixtral-8x22B"
_HEAD = """\
# Quants

`quantkit quants` lists them. `-q` takes any of these names, or a set, and may be repeated.

{sets}

`publish` and `all` need an importance matrix: `quantkit build MODEL -q publish --imatrix auto`.
{trained} are for models that were trained to have them, and are in no set.

`q6_k_l`, `q5_k_l`, `q4_k_l`, `q3_k_xl` and `q2_k_l` are what publishers call a quant whose output
matrix and embeddings are in Q8_0: what `llama-quantize --output-tensor-type q8_0
--token-embedding-type q8_0` makes. The same options of `quantkit build` come first; both together
would turn the quant back into its base, so that is refused.

`source` copies what is there: the converter's own file with MXFP4 and NVFP4 as they were
published, or the GGUF itself.

Want a size in between? [Recipes](recipes.md) hit any size to the byte.

## GGUF

For {model}, planned tensor by tensor. The checkpoint has 281 GB.

| quant | bits per weight | size | good for |
|---|---:|---:|---|
{gguf}

## Folders for transformers

[bitsandbytes](bnb.md) and [GPTQ](gptq.md); the same model.

| quant | bits per weight | size | good for |
|---|---:|---:|---|
{folders}
"""


def page() -> str:
    """The page as it should be."""
    command = [sys.executable, "-m", "quantkit", "quants", "--json"]
    printed = subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout
    rows = json.loads(printed)["quants"]
    gguf = [row for row in rows if row["format"] == "gguf"]
    trained = [row["name"] for row in gguf if not row["groups"]]
    return _HEAD.format(
        model=_MODEL,
        sets=_sets(gguf, trained),
        trained=_listed(trained),
        gguf="\n".join(map(_row, gguf)),
        folders="\n".join(_row(row) for row in rows if row["format"] != "gguf"),
    )


def _sets(gguf: list[dict[str, Any]], trained: list[str]) -> str:
    names = list(dict.fromkeys(group for row in gguf for group in row["groups"]))
    about = {
        "ladder": "one for each number of bits",
        "publish": "what publishers ship",
        "all": "everything but " + _listed(trained),
    }
    assert set(names) == set(about)
    lines = ["| set | |", "|---|---|"]
    for name, what in about.items():
        members = [row["name"] for row in gguf if name in row["groups"]]
        listed = "" if name == "all" else ": " + ", ".join(f"`{member}`" for member in members)
        lines.append(f"| `{name}` | {what}, {len(members)} quants{listed} |")
    return "\n".join(lines)


def _listed(names: list[str]) -> str:
    *most, last = (f"`{name}`" for name in names)
    return f"{', '.join(most)} and {last}"


def _row(row: dict[str, Any]) -> str:
    figures = row["models"][_MODEL]
    needs = "; needs an importance matrix" if row["needs_imatrix"] else ""
    size = f"{figures['tensor_bytes'] / 1e9:.1f} GB"
    bits = f"{figures['bits_per_weight']:.2f}"
    return f"| `{row['name']}` | {bits} | {size} | {row['good_for']}{needs} |"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
