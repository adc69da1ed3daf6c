"""The report's page in a headless Chromium, where there is one: on a phone's width, in light and in dark."""

import html
import json
import re
import shutil
import subprocess

import pytest
from rich.console import Console
from test_training import make_config

from sparsekern.report.colours import DARK, LIGHT
from sparsekern.report.page import render
from sparsekern.report.runs import read_runs
from sparsekern.training.run import run, start

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium"),
]

# A window is never narrower than some 500 pixels; a frame is.
FRAME = '<iframe width="{width}" height="800" srcdoc="{page}"></iframe>'
LOOK = """<pre id="found"></pre>
<script>
addEventListener("load", () => {
  const found = [];
  for (const frame of document.querySelectorAll("iframe")) {
    const view = frame.contentWindow, page = view.document;
    const look = state => found.push({
      state, scroll: page.scrollingElement.scrollWidth, width: view.innerWidth,
      ground: view.getComputedStyle(page.body).backgroundColor,
      text: view.getComputedStyle(page.body).color,
      charts: [...page.querySelectorAll("svg.chart")].filter(svg => svg.checkVisibility())
        .map(svg => svg.getBoundingClientRect().height),
      cut: [...page.querySelectorAll("svg.chart text")].filter(text => text.checkVisibility()).filter(text => {
        const box = text.getBBox(), size = text.ownerSVGElement.viewBox.baseVal;
        return box.x < -1 || box.x + box.width > size.width + 1 || box.y + box.height > size.height + 1;
      }).map(text => text.textContent),
    });
    look("folded");
    page.querySelectorAll("details").forEach(each => each.open = true);
    look("unfolded");
  }
  document.getElementById("found").textContent = JSON.stringify(found);
});
</script>"""
WIDTHS = (320, 360, 1280)


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / ("a long name without any blank " + "x" * 60)
    for folder, changes in ((path, {}), (path / "dense", {"sparsity": {"dense": True}})):
        config = make_config(
            "resnet", interval=3, run={"output": folder, "plots": False, "tensorboard": False}, **changes
        )
        run(*start(config), Console(quiet=True))
    return render(read_runs([path / "dense"])), render(read_runs([path]))


@pytest.mark.parametrize(("scheme", "colours"), [(1, LIGHT), (0, DARK)], ids=["light", "dark"])
def test_it_fits_and_is_dressed_for_the_light(pages, scheme, colours, tmp_path):
    frames = [FRAME.format(width=width, page=html.escape(page)) for page in pages for width in WIDTHS]
    whole = tmp_path / "frames.html"
    whole.write_text("".join(['<!DOCTYPE html><html lang="en"><title>frames</title>', *frames, LOOK]), encoding="utf-8")
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=10000", "--enable-logging=stderr"]
    options += [f"--user-data-dir={tmp_path / 'profile'}", f"--blink-settings=preferredColorScheme={scheme}"]
    done = subprocess.run(
        [CHROMIUM, *options, "--dump-dom", whole.as_uri()], capture_output=True, text=True, timeout=120, check=True
    )
    assert "CONSOLE" not in done.stderr, done.stderr
    found = json.loads(html.unescape(re.search(r'<pre id="found">(.*?)</pre>', done.stdout, re.DOTALL)[1]))
    assert [each["state"] for each in found] == ["folded", "unfolded"] * len(frames)
    assert {each["width"] for each in found} == set(WIDTHS)
    for each in found:
        assert each["scroll"] <= each["width"]
        assert len(each["charts"]) > 5
        assert min(each["charts"]) > 20
        assert each["cut"] == []
        assert each["ground"] == rgb(colours["ground"])
        assert each["text"] == rgb(colours["text"])


def rgb(colour):
    return f"rgb({', '.join(str(int(colour[at : at + 2], 16)) for at in (1, 3, 5))})"


def test_on_paper_all_is_unfolded(pages, tmp_path):
    """As many sheets as where every table is opened before."""
    sheets = []
    for name, page in (("folded", pages[0]), ("open", pages[0].replace("<details", "<details open"))):
        whole, paper = tmp_path / f"{name}.html", tmp_path / f"{name}.pdf"
        whole.write_text(page, encoding="utf-8")
        options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
        command = [CHROMIUM, *options, f"--print-to-pdf={paper}", whole.as_uri()]
        subprocess.run(command, capture_output=True, timeout=120, check=True)
        sheets.append(len(re.findall(rb"/Type\s*/Page\b", paper.read_bytes())))
    assert sheets[0] == sheets[1] > 1
