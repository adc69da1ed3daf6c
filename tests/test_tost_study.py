import json

import pytest

from benchmarks import tost
from benchmarks.options import Tost

DOCS = Tost().output


def run(ingredient, seed, accuracy, method="static", density=0.02):
    sizes = {"nnz": 20, "dense_weights": 1000, "steps": 5}
    return {
        "ingredient": ingredient,
        "method": method,
        "density": density,
        "seed": seed,
        "test_accuracy": accuracy,
        **sizes,
    }


@pytest.fixture
def results():
    return json.loads((DOCS / "tost-digits.json").read_text())


def test_the_page_is_made_from_the_results(results):
    assert (DOCS / "tost-digits.md").read_text() == tost.render(results)


def test_every_run_of_the_table_was_made(results):
    made = {(run["ingredient"], run["method"], run["density"], run["seed"]) for run in results["runs"]}
    assert made == {
        (ingredient, cell.values["method"], float(cell.values["density"]), int(cell.values["seed"]))
        for ingredient in tost.INGREDIENTS
        for cell in tost.all_runs(ingredient).cells()
    }


def test_gains_are_taken_seed_by_seed():
    runs = [run("plain", 0, 0.9), run("plain", 1, 0.5), run("lrsi", 1, 0.52), run("lrsi", 0, 0.91)]
    runs += [run("lrsi", 0, 0.1, density=0.01), run("lrsi", 0, 0.1, method="gse-grabo")]
    assert tost.differences({"runs": runs}, "lrsi", "static", 0.02) == pytest.approx([1.0, 2.0])


@pytest.mark.parametrize(
    ("gains", "word"),
    [
        ([1.0, 1.1, 0.9], "yes"),
        ([-1.0, -1.1, -0.9], "hurts"),
        ([1.0, -1.0, 0.5], "not seen"),
        ([0.0, 0.0], "not seen"),
        ([5.0], "one seed"),
    ],
)
def test_a_gain_is_said_to_help_beyond_twice_its_error(gains, word):
    assert tost.helps(gains) == word


def test_a_small_selection_is_run_and_rendered(tmp_path, monkeypatch):
    monkeypatch.setattr(tost, "RECIPE", ("--model", "mlp", "--width", "16", "--epochs", "1"))
    monkeypatch.setattr(tost, "INGREDIENTS", {name: tost.INGREDIENTS[name] for name in ("plain", "smoothing")})
    monkeypatch.setattr(tost, "METHODS", {"static": tost.METHODS["static"]})
    monkeypatch.setattr(tost, "DENSITIES", (0.05,))
    monkeypatch.setattr(tost, "SEEDS", (3,))
    tost.run(Tost(runs=tmp_path / "runs", output=tmp_path / "docs"))
    results = json.loads((tmp_path / "docs" / "tost-digits.json").read_text())
    assert [run["ingredient"] for run in results["runs"]] == ["plain", "smoothing"]
    assert "| label smoothing |" in (tmp_path / "docs" / "tost-digits.md").read_text()
