"""The report as a browser shows it: sorting works, a phone's width is enough, dark is dark."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.building.builds import build
from tests.cli.command import quantkit

pytestmark = pytest.mark.native  # a browser is no package of Python's

TINY = Path(__file__).parents[1] / "checkpoints" / "tiny-mistral"
PHONE, DESK = "390,844", "1280,900"

# Clicks the heading "size" of the first table twice and leaves what it saw in the page's title.
CLICKS = """
<script>
addEventListener("load", () => {
  const table = document.querySelector("table");
  const heads = [...table.tHead.rows[0].cells];
  const column = heads.findIndex(head => head.textContent.trim().toLowerCase() === "size");
  const value = row => Number(row.cells[column].dataset.value);
  const cells = () => [...table.tBodies[0].rows].map(value);
  const orders = [cells()];
  for (let click = 0; click < 2; click++) {
    heads[column].querySelector("button").click();
    orders.push(cells());
  }
  document.title = JSON.stringify({
    orders,
    sort: heads[column].getAttribute("aria-sort"),
    overflow: document.documentElement.scrollWidth - innerWidth,
    background: getComputedStyle(document.body).backgroundColor,
    broken: [...document.images].filter(image => !image.naturalWidth).length,
    pictures: document.images.length,
  });
});
</script>
"""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("page")
    build(TINY, out / "artifacts", "f16", "q8_0", "q4_0")
    quantkit(
        "compare", out / "artifacts", "--chunks", 2, "--context", 128, "--html", out / "page.html"
    )
    return out / "page.html"


def browse(page: Path, tmp_path: Path, *options: str) -> str:
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("there is no Chromium here; apt-get install chromium")
    done = subprocess.run(
        [
            browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
            f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=3000",
            *options, page.as_uri(),
        ],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return done.stdout


@pytest.mark.parametrize("size", [PHONE, DESK])
def test_a_heading_sorts_and_nothing_sticks_out(page: Path, tmp_path: Path, size: str) -> None:
    copy = tmp_path / "copy.html"
    copy.write_text(page.read_text(encoding="utf-8") + CLICKS, encoding="utf-8")
    html = browse(copy, tmp_path, f"--window-size={size}", "--dump-dom")
    seen = json.loads(html.partition("<title>")[2].partition("</title>")[0])
    first, once, twice = seen["orders"]
    assert len(set(first)) == 3
    assert once == sorted(first)
    assert twice == sorted(first, reverse=True)
    assert seen["sort"] == "descending"
    assert seen["overflow"] <= 0
    assert (seen["pictures"], seen["broken"]) == (2, 0)


def test_it_can_be_looked_at_in_the_dark(page: Path, tmp_path: Path) -> None:
    from matplotlib.image import imread

    brightness = {}
    for scheme in ("light", "dark"):
        shot = tmp_path / f"{scheme}.png"
        browse(
            page,
            tmp_path,
            f"--window-size={DESK}",
            f"--screenshot={shot}",
            f"--blink-settings=preferredColorScheme={0 if scheme == 'dark' else 1}",
        )
        pixels = imread(shot)[..., :3]
        assert pixels.std() > 0.05  # something is drawn on it
        brightness[scheme] = float(pixels[:20].mean())
    assert brightness["dark"] < 0.3 < 0.7 < brightness["light"]
