import json
import statistics

import pytest

from benchmarks import digits
from benchmarks.options import Digits


@pytest.fixture
def results():
    return json.loads((Digits().output / "digits.json").read_text())


def test_the_page_is_made_from_the_results(results):
    assert (Digits().output / "digits.md").read_text() == digits.render(results)


def test_every_run_of_the_table_was_made(results):
    made = {(run["method"], run["density"], run["seed"]) for run in results["runs"]}
    cells = [cell.values for cell in digits.all_runs().cells()]
    assert made == {(cell["method"], float(cell.get("density", 1)), int(cell["seed"])) for cell in cells}


def test_a_small_selection_is_run_and_rendered(tmp_path, monkeypatch):
    monkeypatch.setattr(digits, "RECIPE", ("--model", "mlp", "--width", "16", "--epochs", "1"))
    monkeypatch.setattr(digits, "METHODS", ("gse-grabo",))
    monkeypatch.setattr(digits, "DENSITIES", (0.05,))
    monkeypatch.setattr(digits, "SEEDS", (3,))
    digits.run(Digits(runs=tmp_path / "runs", output=tmp_path / "docs"))
    results = json.loads((tmp_path / "docs" / "digits.json").read_text())
    assert [(run["method"], run["density"], run["seed"]) for run in results["runs"]] == [
        ("dense", 1.0, 3),
        ("gse-grabo", 0.05, 3),
    ]
    accuracy = 100 * results["runs"][1]["test_accuracy"]
    assert f"| GSE, GraBo candidates | {accuracy:.2f} |" in (tmp_path / "docs" / "digits.md").read_text()


@pytest.mark.parametrize("method", ["gse-uniform", "gse-grabo", "gse-graest"])
@pytest.mark.parametrize("baseline", ["static", "set"])
@pytest.mark.parametrize("density", digits.DENSITIES)
def test_gse_is_not_worse_beyond_a_standard_deviation(results, method, baseline, density):
    ours, theirs = (digits.accuracies(results, name, density) for name in (method, baseline))
    assert statistics.mean(ours) >= statistics.mean(theirs) - max(statistics.stdev(ours), statistics.stdev(theirs))
