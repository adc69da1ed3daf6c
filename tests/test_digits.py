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
    assert made == {(run.method, run.density, run.seed) for run in digits.all_runs()}


@pytest.mark.parametrize("method", ["gse-uniform", "gse-grabo", "gse-graest"])
@pytest.mark.parametrize("baseline", ["static", "set"])
@pytest.mark.parametrize("density", digits.DENSITIES)
def test_gse_is_not_worse_beyond_a_standard_deviation(results, method, baseline, density):
    ours, theirs = (digits.accuracies(results, name, density) for name in (method, baseline))
    assert statistics.mean(ours) >= statistics.mean(theirs) - max(statistics.stdev(ours), statistics.stdev(theirs))
