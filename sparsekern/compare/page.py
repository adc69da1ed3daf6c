"""results.md: the comparison as a page of tables."""

from __future__ import annotations

import shlex
import statistics
from collections.abc import Sequence

from sparsekern import tables
from sparsekern.compare.results import Result
from sparsekern.compare.spread import show_mean
from sparsekern.training.report import show_bytes


def render(results: Sequence[Result], runs: int, options: Sequence[str]) -> str:
    """The page, from the finished ones of so many runs and the options that all of them share."""
    paragraphs = ["# Comparison", introduction(results, runs)]
    if results:
        paragraphs += [accuracy_table(results)]
        if all(result.best_dev_test_accuracy is not None for result in results):
            paragraphs += ["## At the epoch that is best on the held-out images"]
            paragraphs += [accuracy_table(results, "best_dev_test_accuracy")]
        paragraphs += ["## Time and storage", STORAGE, size_table(results)]
    paragraphs += ["Each run is", f"```text\n{shlex.join(['sparsekern', 'train', *options])} ...\n```"]
    paragraphs += ["The figures of each are in [results.csv](results.csv)."]
    return tables.page(paragraphs)


STORAGE = (
    "Means over seeds. Storage is what lives from step to step: weights, indices, gradients, optimizer state, other "
    "parameters and buffers; beside it that of the dense network. A step's time depends on what else the machine did."
)


def introduction(results: Sequence[Result], runs: int) -> str:
    if not results:
        return f"None of {runs} runs is finished."
    seeds = [len(group) for group in groups(results).values()]
    if max(seeds) == 1:
        over = "of one seed"
    else:
        number = f"{seeds[0]} seeds" if len(set(seeds)) == 1 else "as many seeds as in brackets"
        over = f"mean and sample standard deviation over {number}"
    unfinished = f" {len(results)} of {runs} runs are finished." if len(results) < runs else ""
    threads = sorted({result.threads for result in results})
    versions = ", ".join(sorted({result.torch for result in results}))
    return (
        f"Test accuracy in percent at the end of training, by density, {over}."
        f"{unfinished} torch {versions}, {' or '.join(map(str, threads))} thread{'s' * (threads != [1])} a run."
    )


def groups(results: Sequence[Result]) -> dict[tuple[str, float | None], list[Result]]:
    """(label, density): its seeds, labels in the order of the runs and densities from the highest."""
    labels = dict.fromkeys(result.label for result in results)
    found: dict[tuple[str, float | None], list[Result]] = {}
    for label in labels:
        of_label = [result for result in results if result.label == label]
        for density in densities(of_label):
            found[label, density] = [result for result in of_label if result.density == density]
    return found


def densities(results: Sequence[Result]) -> list[float | None]:
    """From the highest; None, of dense runs, first."""
    return sorted({result.density for result in results}, key=lambda density: (density is not None, -(density or 0)))


def accuracy_table(results: Sequence[Result], figure: str = "test_accuracy") -> str:
    """A row a method, a column a density. A dense network has one accuracy, which stands in all columns."""
    grouped = groups(results)
    is_uneven = len({len(group) for group in grouped.values()}) > 1
    columns = [density for density in densities(results) if density is not None] or densities(results)
    rows = []
    for label in dict.fromkeys(result.label for result in results):
        found = [grouped.get((label, density)) or grouped.get((label, None), []) for density in columns]
        rows.append([label, *(show_accuracy(group, figure, is_uneven) for group in found)])
    return table(["", *(show_density(density) for density in columns)], rows)


def show_accuracy(group: Sequence[Result], figure: str, with_number: bool) -> str:
    if not group:
        return "-"
    shown = show_mean([100 * getattr(result, figure) for result in group])
    return f"{shown} ({len(group)})" if with_number else shown


def show_density(density: float | None) -> str:
    return "dense" if density is None else f"{density:g}"


def size_table(results: Sequence[Result]) -> str:
    rows = []
    for (label, density), group in groups(results).items():
        rows.append(
            [
                label,
                show_density(density),
                f"{mean(group, 'nnz'):,.0f}",
                f"{1000 * mean(group, 'seconds_per_step'):.2f}",
                f"{mean(group, 'seconds'):.2f}",
                show_bytes(mean(group, "memory_bytes")),
                show_bytes(mean(group, "dense_memory_bytes")),
            ]
        )
    header = ["", "density", "weights", "ms a step", "training, s", "storage", "dense storage"]
    return table(header, rows)


def mean(group: Sequence[Result], figure: str) -> float:
    return statistics.mean(getattr(result, figure) for result in group)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table whose first column has the rows' names."""
    return tables.markdown([header, *rows], [False, *(True for _ in header[1:])])
