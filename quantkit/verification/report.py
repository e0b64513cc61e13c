"""A comparison as one page of HTML that needs nothing else."""

import base64
import html
from collections.abc import Mapping, Sequence
from pathlib import Path

from quantkit.core.errors import OutputError
from quantkit.core.files import read_file
from quantkit.core.units import counted, format_size
from quantkit.core.writing import replace_file
from quantkit.verification.compare import Comparison, Result
from quantkit.verification.divergence import PERCENTILES
from quantkit.verification.layers import WeightError
from quantkit.verification.pictures import efficient, names_of

_STYLE = """
:root { color-scheme: light dark; --ink: #1c1c1e; --paper: #ffffff; --line: #d8d8dc;
  --soft: #f3f3f6; --good: #1d7a3a; --bad: #b3261e; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8e8ea; --paper: #17181a; --line: #3a3b3f;
  --soft: #222327; --good: #6fcf8a; --bad: #ff8a80; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 76rem; background: var(--paper);
  color: var(--ink); font: 16px/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.4rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
.scroll { overflow-x: auto; border: 1px solid var(--line); border-radius: 6px; }
table { border-collapse: collapse; width: 100%; font-size: .85rem; white-space: nowrap;
  font-variant-numeric: tabular-nums; overflow-wrap: normal; }
th, td { padding: .4rem .6rem; text-align: right; border-bottom: 1px solid var(--line); }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0;
  background: var(--paper); }
th { background: var(--soft) !important; }
th button { all: unset; cursor: pointer; font-weight: 600; padding: .3rem 0; }
th button:focus-visible { outline: 2px solid currentColor; }
th[aria-sort=ascending] button::after { content: " \\2191"; }
th[aria-sort=descending] button::after { content: " \\2193"; }
td:last-child, th:last-child { text-align: left; }
.good { color: var(--good); } .bad { color: var(--bad); font-weight: 600; }
figure { margin: 1rem 0; max-width: 56rem; overflow-x: auto; }
figure img { width: 100%; min-width: 36rem; height: auto; background: #fff; border-radius: 6px; }
.note { font-size: .85rem; opacity: .8; }
.verdicts { padding: .6rem .8rem .6rem 2rem; border-left: 4px solid var(--line);
  background: var(--soft); border-radius: 0 6px 6px 0; }
.verdicts.failed { border-color: var(--bad); }
summary { cursor: pointer; padding: .5rem 0; }
@media (max-width: 40rem) { body { padding: .7rem; } th, td { padding: .4rem .45rem; }
  td:first-child { max-width: 40vw; overflow: hidden; text-overflow: ellipsis; } }
"""

_SCRIPT = """
for (const table of document.querySelectorAll("table")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
    const up = head.getAttribute("aria-sort") !== "ascending";
    heads.forEach((other) => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    const key = (row) => row.cells[column].dataset.value ?? row.cells[column].textContent;
    const body = table.tBodies[0];
    const rows = [...body.rows].sort((a, b) => {
      const x = key(a), y = key(b);
      if (x === "" || y === "") return (x === "") - (y === "");
      const order = isNaN(x) || isNaN(y) ? x.localeCompare(y) : x - y;
      return up ? order : -order;
    });
    body.append(...rows);
  }));
}
"""

_CAPTIONS = {
    "frontier": "Size against mean KL divergence. Lower left is better. The line joins the files "
    "that no other one beats in both. Red: failed.",
    "percentiles": "How the divergence is distributed: that share of the tokens stays below.",
    "layers": "Relative root mean square error of each tensor and each expert.",
}


def write_page(
    comparison: Comparison,
    errors: Sequence[WeightError] | None,
    artifact: str,
    pictures: Sequence[Path],
    file: Path,
) -> None:
    """Write one HTML file that needs nothing else: no network, no other file.

    What is wrong comes first, then what is needed to choose, then the rest, folded.

    Raises:
        OutputError: it cannot be written.

    """
    name = html.escape(comparison.reference.name)
    drawn = {picture.stem: picture for picture in pictures if picture.suffix == ".svg"}
    parts = [
        "<!doctype html>\n<html lang='en'>\n<head>\n<meta charset='utf-8'>",
        "<meta name='viewport' content='width=device-width, initial-scale=1'>",
        f"<title>How close to {name}</title>\n<style>{_STYLE}</style>\n</head>\n<body>",
        f"<h1>How close to {name}</h1>",
        _verdicts(comparison),
        _choice_table(comparison),
        _figure(drawn, "frontier"),
        "<h2>Speed and memory</h2>",
        _speed_table(comparison),
        "<h2>All figures</h2>",
        _quality_table(comparison),
        _figure(drawn, "percentiles"),
    ]
    if errors:
        parts += [f"<h2>Weights of {html.escape(artifact)}</h2>", _figure(drawn, "layers")]
        parts += [f"<details><summary>All tensors</summary>{_weights_table(errors)}</details>"]
    parts += ["<h2>How this was measured</h2>", _method(comparison)]
    parts.append(f"<script>{_SCRIPT}</script>\n</body>\n</html>\n")
    try:
        replace_file(file, "\n".join(parts).encode("utf-8", "backslashreplace"))
    except OSError as error:
        raise OutputError(f"{file} cannot be written: {error.strerror}.") from None


def _verdicts(comparison: Comparison) -> str:
    """How many are healthy, then those that are not, with their reasons."""
    rows = [row for row in comparison.results if not row.is_reference]
    names = names_of(comparison.results)
    called = {id(row): name for row, name in zip(comparison.results, names, strict=True)}
    failed = [row for row in rows if not row.verdict.ok]
    unsure = [row for row in rows if row.verdict.ok and not row.verdict.judged]
    counts = [(len(failed), "failed"), (len(unsure), "not judged")]
    counts.append((len(rows) - len(failed) - len(unsure), "healthy"))
    said = ", ".join(f"{count} {word}" for count, word in counts if count)
    parts = [f"<p>{said or 'There is nothing but the reference'}.</p>"]
    for kind, some in (("failed", failed), ("unsure", unsure)):
        items = "".join(
            f"<li><b>{html.escape(called[id(row)])}</b>: {html.escape(row.verdict.reason)}</li>"
            for row in some
        )
        parts.append(f"<ul class='verdicts {kind}'>{items}</ul>" if items else "")
    return "\n".join(parts)


def _method(comparison: Comparison) -> str:
    if comparison.embeds:
        over = f"{comparison.windows} texts, each embedded as a whole"
    else:
        over = f"{comparison.windows} windows of {comparison.context} tokens"
        over += ", of each of which the second half is scored"
    return (
        f"<p class='note'>llama.cpp ran every file {comparison.place} "
        f"({counted(comparison.threads, 'thread')}) over {over}.</p>"
        f"<p class='note'>Text: {html.escape(comparison.text)} (sha256 "
        f"{comparison.text_sha256[:16]}). KL divergence is in nats per token. The reference's "
        "log-probabilities are kept in 16 bits; its own row shows what that rounding costs. "
        "&plusmn; is one standard error.</p>"
    )


def _figure(drawn: Mapping[str, Path], name: str) -> str:
    if name not in drawn:
        return ""
    data = base64.b64encode(read_file(drawn[name])).decode()
    caption = _CAPTIONS[name]
    return (
        f"<figure><img alt='{caption}' src='data:image/svg+xml;base64,{data}'>"
        f"<figcaption class='note'>{caption}</figcaption></figure>"
    )


Cell = tuple[str, float | str]  # what is shown, and what it is sorted by


def _table(name: str, headings: Sequence[str], rows: Sequence[Sequence[Cell]]) -> str:
    head = "".join(f"<th scope='col'><button>{h}</button></th>" for h in headings)
    body = "\n".join(
        "<tr>" + "".join(f"<td data-value='{_value(v)}'>{text}</td>" for text, v in row) + "</tr>"
        for row in rows
    )
    return (
        f"<div class='scroll'><table id='{name}'><thead><tr>{head}</tr></thead>\n"
        f"<tbody>\n{body}\n</tbody></table></div>"
    )


def _value(value: float | str) -> str:
    return html.escape(value, quote=True) if isinstance(value, str) else f"{value:.9g}"


def _first_cells(row: Result, name: str) -> list[Cell]:
    size = row.subject.n_bytes
    return [(html.escape(name), name), (format_size(size), size)]


def _choice_table(comparison: Comparison) -> str:
    """What one chooses by; those that no other file beats in size and divergence are bold."""
    headings = ["file", "size", "mean KLD", "PPL ratio", "same top", "verdict"]
    if comparison.embeds:
        headings = ["file", "size", "mean cosine", "verdict"]
    measured = [row for row in comparison.results if row.measures and not row.is_reference]
    best = efficient([row for row in measured if row.verdict.ok])
    rows: list[list[Cell]] = []
    for row, name in zip(comparison.results, names_of(comparison.results), strict=True):
        m, cells = row.measures, _first_cells(row, name)
        if row in best:
            cells[0] = (f"<b>{cells[0][0]}</b>", cells[0][1])
        if comparison.embeds:
            mean = row.cosines.mean if row.cosines else None
            cells.append(("", "") if mean is None else (f"{mean:.5f}", mean))
        elif m is None:
            cells += [("", "")] * 3
        else:
            cells.append((f"{max(m.kld, 0.0):.5f}", max(m.kld, 0.0)))
            cells += [(f"{m.ppl_ratio:.4f}", m.ppl_ratio), (f"{m.same_top:.1%}", m.same_top)]
        cells.append(_verdict_cell(row))
        rows.append(cells)
    note = "<p class='note'>Bold: no other file is both smaller and closer.</p>" if best else ""
    return _table("choice", headings, rows) + note


def _verdict_cell(row: Result) -> Cell:
    kind = "good" if row.verdict.ok else "bad"
    word = "healthy" if row.verdict.judged else "not judged"
    word = "reference" if row.is_reference else word if row.verdict.ok else "failed"
    return f"<span class='{kind}'>{word}</span>", word


def _quality_table(comparison: Comparison) -> str:
    shares = [f"KLD {p:g}&nbsp;%" if p != 50 else "KLD median" for p in PERCENTILES]
    headings = ["artifact", "verdict", "size", "PPL", "&plusmn;", "PPL ratio", "mean KLD"]
    headings += ["&plusmn;", *shares, "KLD max", "same top", "RMS &Delta;p", "run", "why"]
    if comparison.embeds:
        headings = ["artifact", "verdict", "size", "mean cosine", "worst cosine", "run", "why"]
    rows: list[list[Cell]] = []
    for row, name in zip(comparison.results, names_of(comparison.results), strict=True):
        m = row.measures
        cells = _first_cells(row, name)
        cells.insert(1, _verdict_cell(row))
        if row.cosines is not None:
            cells += [(f"{v:.6f}", v) for v in (row.cosines.mean, row.cosines.worst)]
        elif m is None:
            cells += [("", "")] * (len(headings) - 5)
        else:
            # What rounding leaves of 0 may be below it.
            small = [max(x, 0.0) for x in (m.kld, m.kld_pm, *m.kld_percentiles, m.kld_max)]
            cells += [(f"{v:.3f}", v) for v in (m.ppl, m.ppl_pm)]
            cells.append((f"{m.ppl_ratio:.5f}", m.ppl_ratio))
            cells += [(f"{v:.6f}", v) for v in small]
            cells += [(f"{v:.2%}", v) for v in (m.same_top, m.rms_dp)]
        cells.append((html.escape(row.subject.how), row.subject.how))
        cells.append((html.escape(row.verdict.reason), row.verdict.reason))
        rows.append(cells)
    return _table("quality", headings, rows)


def _speed_table(comparison: Comparison) -> str:
    headings = ["artifact", "size", "prompt tokens/s", "generated tokens/s", "load s", "memory"]
    rows: list[list[Cell]] = []
    for row, name in zip(comparison.results, names_of(comparison.results), strict=True):
        speed = row.speed
        cells = _first_cells(row, name)
        if speed is None:
            cells += [("", "")] * 4
        else:
            cells += [
                (f"{v:,.1f}", v) if v is not None else ("", "")
                for v in (speed.prompt_tokens_per_second, speed.generation_tokens_per_second)
            ]
            cells.append((f"{speed.load_seconds:.2f}", speed.load_seconds))
            memory = speed.resident_bytes
            cells.append((format_size(memory), memory) if memory else ("", ""))
        rows.append(cells)
    return _table("speed", headings, rows)


def _weights_table(errors: Sequence[WeightError]) -> str:
    headings = ["tensor", "expert", "encoding", "relative error"]
    rows: list[list[Cell]] = [
        [
            (html.escape(e.tensor), e.tensor),
            ("", "") if e.expert is None else (str(e.expert), e.expert),
            (e.encoding, e.encoding),
            (f"{e.error:.5f}", e.error),
        ]
        for e in errors
    ]
    return _table("weights", headings, rows)
