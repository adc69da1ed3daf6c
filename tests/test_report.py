"""The report's page: what it says is what the files say, in HTML that anyone can read."""

import csv
import itertools
import json
import re
import shutil
from collections import Counter
from html.parser import HTMLParser

import pytest
import torch
from rich.console import Console
from test_training import make_config

from sparsekern.cli import main
from sparsekern.report.colours import DARK, LIGHT, contrast
from sparsekern.report.command import write_report
from sparsekern.report.curves import mean_survival, step_times, survival_lines, turnover
from sparsekern.report.degrees import binned, spread
from sparsekern.report.figures import line_figure
from sparsekern.report.markup import Markup, tag
from sparsekern.report.numbers import log_ticks, milliseconds, percent, plain, short, thinned, ticks
from sparsekern.report.page import render
from sparsekern.report.runs import Run, names_of, read_run, read_runs
from sparsekern.report.style import style_sheet
from sparsekern.report.svg import DASHES, MARKERS, Line, line_drawing
from sparsekern.training.checkpoint import load_checkpoint
from sparsekern.training.checkpoints import Checkpoints
from sparsekern.training.config import TrainConfig
from sparsekern.training.metrics import read_csv
from sparsekern.training.run import Stopped, run, start

pytestmark = pytest.mark.usefixtures("one_thread")

BAD_NAME = "<script>alert('1')</script>&\"x"


class Element:
    def __init__(self, name, attributes, parent):
        self.name, self.attributes, self.parent, self.children = name, attributes, parent, []

    def all(self, name):
        found = [self] if self.name == name else []
        return found + [each for child in self.children if isinstance(child, Element) for each in child.all(name)]

    @property
    def text(self):
        return "".join(child if isinstance(child, str) else child.text for child in self.children)


class Tree(HTMLParser):
    """Parses a page, and fails on an element that is closed out of turn or never."""

    def __init__(self, page):
        super().__init__()
        self.root = self.open = Element("root", {}, None)
        self.feed(page)
        self.close()
        assert self.open is self.root, f"{self.open.name} is never closed"

    def handle_starttag(self, name, attributes):
        assert len(dict(attributes)) == len(attributes), attributes
        element = Element(name, dict(attributes), self.open)
        self.open.children.append(element)
        if name not in {"meta", "br", "col"}:
            self.open = element

    def handle_endtag(self, name):
        assert self.open.name == name, f"</{name}> in {self.open.name}"
        self.open = self.open.parent

    def handle_data(self, data):
        self.open.children.append(data)


def parse(page):
    return Tree(page).root


def train(path, **changes):
    config = make_config(**changes, run={"epochs": 3, "plots": False, "output": path, "tensorboard": False})
    run(*start(config), Console(quiet=True))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Runs of all kinds: grown with its twin, static, dense, stopped, of an older version, with a bad name."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    path = tmp_path_factory.mktemp("runs")
    train(path / "grown", model="resnet", interval=5)
    train(path / "grown" / "dense", model="resnet", sparsity={"dense": True})
    train(path / "static", growth="static")
    stopped = make_config(run={"epochs": 3, "stop_after": 15, "output": path / "stopped", "tensorboard": False})
    with pytest.raises(Stopped):
        run(*start(stopped), Console(quiet=True))
    shutil.copytree(path / "stopped", path / BAD_NAME.replace("/", ":"))
    make_old(path / "grown", path / "old")
    start(make_config(run={"output": path / "begun", "tensorboard": False}))
    torch.set_num_threads(threads)
    return path


def make_old(new, old):
    """A run as versions without observation left it."""
    shutil.copytree(new, old, ignore=shutil.ignore_patterns("layers.csv", "resources.csv", "dense"))
    for name, columns in (("topology.csv", 8), ("metrics.csv", 9)):
        with (old / name).open() as file:
            rows = [row[:columns] for row in csv.reader(file)]
        with (old / name).open("w", newline="") as file:
            csv.writer(file).writerows(rows)
    config = json.loads((old / "config.json").read_text())
    del config["run"]["tensorboard"]
    (old / "config.json").write_text(json.dumps(config))
    summary = json.loads((old / "summary.json").read_text())
    for name in ("python", "sparsekern", "device"):
        del summary[name]
    (old / "summary.json").write_text(json.dumps(summary))


KINDS = {
    "grown with its twin": ["grown"],
    "static": ["static"],
    "dense": ["grown/dense"],
    "stopped": ["stopped"],
    "begun": ["begun"],
    "old": ["old"],
    "bad name": [BAD_NAME.replace("/", ":")],
    "all": ["grown", "static", "stopped", "begun", "old", BAD_NAME.replace("/", ":")],
}


@pytest.fixture(params=KINDS)
def page(request, folder):
    return render(read_runs([folder / name for name in KINDS[request.param]]))


def test_it_is_one_well_formed_page_that_needs_nothing_else(page):
    root = parse(page)
    html = root.all("html")[0]
    assert page.startswith("<!DOCTYPE html>")
    assert html.attributes["lang"] == "en"
    assert not root.all("script")
    assert not re.search(r"https?:|//|url\(|@import|\bon\w+=", page.replace("://", ""))
    assert all(not {"src", "srcset"} & each.attributes.keys() for each in everything(root))
    viewport = next(each for each in root.all("meta") if each.attributes.get("name") == "viewport")
    assert viewport.attributes["content"] == "width=device-width, initial-scale=1"


def everything(element):
    yield element
    for child in element.children:
        if isinstance(child, Element):
            yield from everything(child)


def test_it_can_be_listened_to(page):
    root = parse(page)
    ids = [each.attributes["id"] for each in everything(root) if "id" in each.attributes]
    assert len(set(ids)) == len(ids)
    levels = [int(each.name[1]) for each in everything(root) if re.fullmatch("h[1-6]", each.name)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    skip = root.all("body")[0].all("a")[0]
    assert skip.attributes["href"] == "#content"
    for link in root.all("a"):
        assert link.attributes["href"].removeprefix("#") in ids
        assert link.text
    assert len(root.all("main")) == len(root.all("nav")) == 1
    for table in root.all("table"):
        assert table.all("caption")[0].text
        assert all(head.attributes.get("scope") in ("col", "row") and head.text for head in table.all("th"))
        widths = {len(row.all("th")) + len(row.all("td")) for row in table.all("tr")}
        assert len(widths) == 1, table.all("caption")[0].text
        box = table.parent  # scrolls, and by the keyboard too
        assert (box.attributes["tabindex"], box.attributes["role"]) == ("0", "group")


def test_every_chart_has_its_words_and_its_numbers(page, folder):
    root = parse(page)
    for svg in root.all("svg"):
        if svg.attributes.get("aria-hidden") == "true":
            assert svg.parent.text.strip()  # a sample in a legend, beside its name
            continue
        assert svg.attributes["role"] == "img"
        named = svg.attributes["aria-labelledby"].split()
        told = [each for each in everything(svg) if each.attributes.get("id") in named]
        assert [each.name for each in told] == ["title", "desc"]
        assert all(len(each.text) > 3 for each in told)
        figure = svg.parent
        assert figure.name == "figure"
        assert figure.all("figcaption")[0].text
        assert figure.all("table") or figure.parent.all("table")  # the memory chart's is beside it


def test_text_is_text(folder):
    page = render(read_runs([folder / KINDS["bad name"][0], folder / "grown"]))
    assert "<script" not in page
    assert KINDS["bad name"][0] in parse(page).text
    assert tag("p", "<b>", Markup("<i></i>"), None, title='"&') == '<p title="&quot;&amp;">&lt;b&gt;<i></i></p>'


def tables(root, start):
    """The table whose caption begins so: its header and its rows."""
    table = next(each for each in root.all("table") if each.all("caption")[0].text.startswith(start))
    rows = [[cell.text for cell in everything(row) if cell.name in ("th", "td")] for row in table.all("tr")]
    return rows[0], rows[1:]


def test_its_numbers_are_the_files(folder):
    path = folder / "static"
    root = parse(render(read_runs([path])))
    metrics = read_csv(path / "metrics.csv")
    header, rows = tables(root, "Loss")
    assert header == ["epoch", "train", "test"]
    assert rows == [[row["epoch"], plain(float(row["loss"])), plain(float(row["test_loss"]))] for row in metrics]
    _, rows = tables(root, "Accuracy")
    names = ("train_accuracy", "test_accuracy")
    assert rows == [[row["epoch"], *(percent(float(row[name])) for name in names)] for row in metrics]
    _, rows = tables(root, "Gradient norm, all")
    assert [row[1] for row in rows] == [plain(float(row["grad_norm"])) for row in metrics]
    _, rows = tables(root, "Time of a step")
    steps = len(metrics) and int(metrics[0]["step"])
    assert [row[1] for row in rows] == [milliseconds(float(row["seconds"]) / steps) for row in metrics]
    summary = json.loads((path / "summary.json").read_text())
    _, rows = tables(root, "The runs")
    assert rows[0][4:7] == [
        percent(summary["test_accuracy"]),
        plain(summary["test_loss"]),
        f"{summary['nnz']:,}",
    ]
    _, rows = tables(root, "Memory of")
    weights = next(row for row in rows if row[0] == "weights")
    assert weights[3] == f"{summary['memory']['weights'] / summary['dense_memory']['weights']:.3f}"


def test_its_topology_is_the_files(folder):
    path = folder / "grown"
    alone = parse(render([read_run(path, "grown")]))
    assert tables(alone, "Edges replaced")[0][1] == "all layers, and their range"
    root = parse(render(read_runs([path])))  # beside its dense twin: the line says whose it is
    updates = read_csv(path / "topology.csv")
    steps = sorted({int(row["step"]) for row in updates})
    header, rows = tables(root, "Edges replaced")
    assert header[1:] == ["grown: all layers, and their range", "lowest layer", "highest layer"]
    for step, shown in zip(steps, rows, strict=True):
        replaced, edges = (
            [int(row[name]) for row in updates if int(row["step"]) == step] for name in ("replaced", "nnz")
        )
        shares = [a / b for a, b in zip(replaced, edges, strict=True)]
        assert shown == [str(step), *map(percent, (sum(replaced) / sum(edges), min(shares), max(shares)))]
    _, rows = tables(root, "Dead columns")
    dead = [sum(int(row["dead_columns"]) for row in updates if int(row["step"]) == step) for step in steps]
    assert [row[1] for row in rows] == [f"{number:,}" for number in dead]
    state = load_checkpoint(path / "checkpoint.safetensors")
    header, rows = tables(root, "Layers of grown")
    at = {name: header.index(name) for name in header}
    for row in rows:
        name = row[0]
        size = state["growth"]["layers"].get(name)
        fan_out = state["model"][f"{name}.ccol_indices"].diff()
        assert row[at["edges"]] == f"{size[2]:,}"
        assert row[at["density"]] == percent(size[2] / (size[0] * size[1]))
        assert row[at["dead columns"]] == f"{int((fan_out == 0).sum()):,}"
        assert row[at["fan-out"]] == f"{fan_out.min()}, {fan_out.median()}, {fan_out.max():,}"
        _, bins = tables(root, f"Fan-in and fan-out of {name}")
        assert sum(int(count.replace(",", "")) for side, _, count in bins if side == "rows") == size[0]
        assert sum(int(count.replace(",", "")) for side, _, count in bins if side == "columns") == size[1]


def test_survival_of_all_is_weighted_by_what_was_grown():
    rows = [
        {"step": step, "layer": layer, "nnz": 10.0, "replaced": replaced, "survived": survived}
        for step, layer, replaced, survived in (
            (1.0, "a", 4.0, None),
            (1.0, "b", 1.0, None),
            (2.0, "a", 2.0, 0.5),
            (2.0, "b", 0.0, 1.0),
            (3.0, "a", 1.0, 0.0),
            (3.0, "b", 1.0, 0.0),
        )
    ]
    one = Run("x", None, TrainConfig(), updates=rows)
    (line,) = survival_lines([one])
    assert line.points == [(2.0, 3 / 5), (3.0, 0.0)]
    assert line.band == [(2.0, 0.5, 1.0), (3.0, 0.0, 0.0)]
    assert mean_survival(one) == {"a": 2 / 6, "b": 1 / 2}
    assert turnover(one) == {"a": 0.7, "b": 0.2}


def test_what_is_missing_is_said(folder):
    said = {name: " ".join(read_run(folder / name, name).problems) for name in ("static", "stopped", "begun", "old")}
    assert said["static"] == "No update has changed its topology."
    assert said["stopped"] == "It is not finished: sizes, memory and time of the whole are measured at the end."
    assert "has not tested an epoch" in said["begun"]
    assert "no layers.csv" in said["old"]
    assert "older version" in said["old"]
    assert read_run(folder / "grown" / "dense", "x").problems == []
    text = parse(render(read_runs([folder / "stopped"]))).text
    assert said["stopped"] in text
    assert "unfinished, 1 of 3 epochs" in text


def test_a_damaged_checkpoint_costs_the_histograms_alone(folder, tmp_path):
    shutil.copytree(folder / "static", tmp_path / "run")
    path = tmp_path / "run" / "checkpoint.safetensors"
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    (step,) = Checkpoints(tmp_path / "run").earlier()
    text = parse(render(read_runs([tmp_path / "run"]))).text
    assert "The histograms are of an earlier checkpoint: " in text
    assert f"Fan-in and fan-out at step {step}, from the checkpoint" in text
    (tmp_path / "run" / f"checkpoint-{step}.safetensors").unlink()
    text = parse(render(read_runs([tmp_path / "run"]))).text
    assert "No histograms of fan-in and fan-out" in text
    assert "does not" in text or "do not match their checksum" in text


def test_a_row_that_a_kill_cut_short_is_left_out_and_a_wrong_number_is_named(folder, tmp_path):
    shutil.copytree(folder / "static", tmp_path / "run")
    path = tmp_path / "run" / "metrics.csv"
    whole = path.read_text()
    path.write_text(whole + "99,4,0.")
    assert len(read_run(tmp_path / "run", "x").epochs) == 3
    path.write_text(whole.replace("\n", "\nmany", 1))
    with pytest.raises(ValueError, match=r"metrics.csv, row 1: step is 'many\d+'; expected a number"):
        read_run(tmp_path / "run", "x")


def test_a_loss_that_is_not_finite_is_in_the_table_and_not_in_the_chart():
    line = Line("x", [(1.0, 2.0), (2.0, float("nan")), (3.0, float("inf")), (4.0, 1.0)])
    figure = line_figure("k", "Loss", "", "epoch", [line], log=True)
    assert "nan" in figure[figure.index("<table") :]
    assert "nan" not in " ".join(re.findall(r' d="[^"]*"', figure))
    assert line_figure("k", "Loss", "", "epoch", [Line("x", [(1.0, float("nan"))])]) is None


def test_a_layer_without_a_gradient_is_below_a_logarithmic_chart():
    line = Line("x", [(1.0, 2.0), (2.0, 1.0), (3.0, 1.5)], band=[(1.0, 0.0, 2.0), (2.0, 0.25, 1.0), (3.0, 0.0, 0.0)])
    figure = line_figure("k", "Norm", "", "step", [line], log=True)
    (band,) = re.findall(r'<path d="([^"]*)" class="band', figure)
    assert band.count("L") == 3  # two points above, two below
    assert "nan" not in figure
    assert line_figure("k", "Norm", "", "step", [Line("x", [(1.0, 1.0)], band=[(1.0, 0.0, 0.0)])], log=True)


def test_the_command_writes_where_it_says(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["report", str(folder / "static")]) == 0
    assert (folder / "static" / "report.html").read_text().startswith("<!DOCTYPE html>")
    assert main(["report", str(folder / "static"), str(folder / "stopped")]) == 0
    assert "Comparison of 2 runs" in (tmp_path / "report.html").read_text()
    assert main(["report", str(folder / "static"), "--output", "new/page.html"]) == 0
    assert [each.name for each in (tmp_path / "new").iterdir()] == ["page.html"]
    assert "new/page.html" in capsys.readouterr().out.replace("\n", "")
    assert main(["report", str(folder / "nowhere")]) == 1
    assert "no run at" in capsys.readouterr().err
    assert main(["report", str(folder / "static"), "--output", "new"]) == 1
    assert "is a folder" in capsys.readouterr().err
    with pytest.raises(ValueError, match="no run is named"):
        write_report([])


def test_the_same_files_make_the_same_page(folder):
    assert render(read_runs([folder / "grown"])) == render(read_runs([folder / "grown"]))


def test_a_comparisons_folder_stands_for_its_runs(folder, tmp_path):
    (tmp_path / "runs").mkdir()
    for name in ("static", "stopped"):
        shutil.copytree(folder / name, tmp_path / "runs" / name)
    assert [each.name for each in read_runs([tmp_path])] == ["static", "stopped"]


def test_runs_are_named_so_that_they_can_be_told_apart(tmp_path):
    names = names_of([tmp_path / "a" / "x", tmp_path / "b" / "x", tmp_path / "b" / "x" / "dense"])
    assert names == ["a/x", "b/x", "b/x/dense"]
    assert names_of([tmp_path / "y", tmp_path / "y" / "dense"]) == ["y", "y/dense"]


@pytest.mark.parametrize("colours", [LIGHT, DARK], ids=["light", "dark"])
def test_contrast_is_that_of_wcag_aa(colours):
    for ground in ("ground", "raised"):
        for text in ("text", "muted", "link"):
            assert contrast(colours[text], colours[ground]) >= 4.5, (text, ground)
        for name in colours:
            if name.startswith("series-") or name == "heat":
                assert contrast(colours[name], colours[ground]) >= 3, (name, ground)
    assert contrast("#ffffff", "#000000") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)


def test_the_style_knows_no_other_colours():
    assert LIGHT.keys() == DARK.keys()
    own = set(LIGHT.values()) | set(DARK.values())
    assert set(re.findall(r"#[0-9a-f]{3,8}\b", style_sheet())) == own
    assert "@media screen and (prefers-color-scheme: dark)" in style_sheet()


def test_no_two_lines_look_alike():
    dresses = [(line.dress, line.pattern) for line in (Line("", [], number) for number in range(36))]
    assert len(set(dresses)) == 36
    assert len({pattern for _, pattern in dresses[:6]}) == 6  # without colours too
    assert len(set(MARKERS)) == len(set(DASHES)) == 6


def test_ticks_are_round_and_within():
    for low, high in ((0, 1), (0.02, 0.97), (-3, 12), (100, 100000), (1e-6, 2e-6), (5, 5)):
        found = ticks(low, high)
        assert 1 <= len(found) <= 7
        assert all(low - 1e-9 <= tick <= high + 1e-9 for tick in found)
    assert ticks(0, 10) == [0, 2, 4, 6, 8, 10]
    assert log_ticks(0.01, 20) == [0.01, 0.1, 1, 10]
    assert log_ticks(0.9, 6) == [1, 2, 5]
    assert all(0.7 <= tick <= 1.2 for tick in log_ticks(0.7, 1.2))


@pytest.mark.parametrize(
    ("low", "high"), [(0, 2e5), (2471.01, 2471.05), (123_400, 123_900), (0, 1.3e9), (-3e-4, 3e-4), (0, 1), (1e-6, 3e-5)]
)
def test_an_axis_says_its_ticks_whole_and_inside_the_picture(low, high):
    shown = [short(tick) for tick in ticks(low, high)]
    assert [float(text) for text in shown] == pytest.approx(ticks(low, high), rel=1e-12)
    drawn = line_drawing([Line("", [(low, low), (high, high)])], "steps")
    ends = [(float(x), text) for x, text in re.findall(r'<text x="([0-9.]+)"[^>]*class="end">([^<]*)<', drawn)]
    assert len(ends) > 2
    assert all(x >= 7 * len(text) - 1 for x, text in ends)
    assert short(150_000) == "1.5e5"
    assert thinned([(x, x) for x in range(5)], 10) == [(x, x) for x in range(5)]
    assert thinned([(x, x) for x in range(100)], 10)[-1] == (99, 99)
    assert len(thinned([(x, x) for x in range(1000)], 10)) <= 11


def test_bins_hold_all():
    counts = Counter({0: 3, 7: 2, 100: 1})
    bins = binned(counts)
    assert len(bins) <= 24
    assert sum(count for *_, count in bins) == 6
    assert binned(Counter({2: 1, 4: 5})) == [(2, 2, 1), (3, 3, 0), (4, 4, 5)]
    assert spread(counts) == (0, 0, 100)
    assert spread(Counter({1: 1, 2: 1, 9: 1})) == (1, 2, 9)


def test_step_times_are_those_of_each_epoch(folder):
    path = folder / "static"
    metrics = read_csv(path / "metrics.csv")
    steps = int(metrics[0]["step"])
    expected = [(float(row["epoch"]), float(row["seconds"]) / steps) for row in metrics]
    assert step_times(read_run(path, "x")) == expected
