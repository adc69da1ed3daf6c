"""The curves of one run or of several: training, topology, time and memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

from sparsekern.report.figures import line_figure
from sparsekern.report.markup import Markup
from sparsekern.report.numbers import is_finite, milliseconds, percent, plain
from sparsekern.report.runs import Row, Run, by_layer, by_step
from sparsekern.report.svg import Band, Line, Point

MIB = 1 << 20
RELATIVE, ALONE = "deviation / mean", "all layers, and their range"


def training_charts(runs: Sequence[Run]) -> list[Markup | None]:
    """Loss, accuracy, learning rate and the gradient's norm, by epoch."""
    return [
        *epoch_charts(runs, "loss", "Loss", {"train": "loss", "dev": "dev_loss", "test": "test_loss"}),
        *epoch_charts(
            runs,
            "accuracy",
            "Accuracy",
            {"train": "train_accuracy", "dev": "dev_accuracy", "test": "test_accuracy"},
        ),
        line_figure("lr", "Learning rate", "", "epoch", epoch_lines(runs, "lr"), from_zero=True),
        line_figure(
            "norm",
            "Gradient norm, all parameters",
            "last step of each epoch",
            "epoch",
            epoch_lines(runs, "grad_norm"),
            log=True,
        ),
    ]


def epoch_charts(runs: Sequence[Run], key: str, title: str, columns: dict[str, str]) -> list[Markup | None]:
    """Of one run all columns in one chart; of several a chart a column."""
    is_loss = key == "loss"

    def draw(name: str, heading: str, lines: Sequence[Line]) -> Markup | None:
        if is_loss:
            return line_figure(name, heading, "logarithmic", "epoch", lines, log=True)
        return line_figure(name, heading, "%", "epoch", lines, form=percent, scale=100)

    if len(runs) == 1:
        run = runs[0]
        lines = [Line(name, epoch_points(run, column), at) for at, (name, column) in enumerate(columns.items())]
        return [draw(key, title, [line for line in lines if line.points])]
    return [draw(f"{name}-{key}", f"{title}, {name}", epoch_lines(runs, column)) for name, column in columns.items()]


def epoch_points(run: Run, column: str) -> list[Point]:
    values = zip(run.column("epoch"), run.column(column), strict=True)
    return [(epoch, value) for epoch, value in values if epoch is not None and value is not None]


def epoch_lines(runs: Sequence[Run], column: str) -> list[Line]:
    return lines_of(runs, lambda run: epoch_points(run, column))


def lines_of(runs: Sequence[Run], points: Callable[[Run], list[Point]]) -> list[Line]:
    """A line a run that has points, in the look of the run's place."""
    lines = [Line(run.name, points(run), number) for number, run in enumerate(runs)]
    return [line for line in lines if line.points]


def topology_charts(runs: Sequence[Run]) -> list[Markup | None]:
    """Turnover, survival, spread and dead neurons, by step; of a run that alone has updates with its layers' range."""
    shares = partial(line_figure, form=percent, scale=100.0, from_zero=True)
    numbers = partial(line_figure, from_zero=True)
    lines = partial(update_lines, runs)
    replaced, first = lines(replaced_share, layer_replaced), lines(first_share, lambda row: row.get("first"))
    return [
        shares("turnover", "Edges replaced by each update", "% of all edges", "step", replaced),
        shares("survival", "Grown edges that survived the next update", "%", "step", survival_lines(runs)),
        shares("first", "Edges that are there from the beginning", "%", "step", first),
        numbers("spread-in", "Spread of fan-in", RELATIVE, "step", lines(mean_of(spread_in), spread_in)),
        numbers("spread-out", "Spread of fan-out", RELATIVE, "step", lines(mean_of(spread_out), spread_out)),
        numbers("dead-rows", "Dead rows: no incoming edge", "all layers", "step", lines(sum_of("dead_rows"))),
        numbers("dead-columns", "Dead columns: no outgoing edge", "all layers", "step", lines(sum_of("dead_columns"))),
        line_figure("update-norm", "Gradient norm", "sparse layers", "step", lines(norm_of_all, layer_norm), log=True),
    ]


Value = Callable[[Row], "float | None"]
Total = Callable[[list[Row]], "float | None"]


def update_lines(runs: Sequence[Run], of_all: Total, of_layer: Value | None = None) -> list[Line]:
    """A line a run of a number an update; of a run alone with the range of the layers' numbers."""
    lines = []
    for number, run in enumerate(runs):
        points, band = [], []
        for step, rows in by_step(run.updates).items():
            total = of_all(rows)
            if total is None:
                continue
            points.append((step, total))
            values = [] if of_layer is None else [value for row in rows if is_finite(value := of_layer(row))]
            if values:
                band.append((step, min(values), max(values)))
        if points:
            lines.append(line_of(runs, number, points, band if of_layer is not None else None))
    return lines


def line_of(runs: Sequence[Run], number: int, points: list[Point], band: Band | None) -> Line:
    """A run's line; with its layers' range where only one run has updates, for then there is room to show it."""
    name = runs[number].name
    if band is None or sum(bool(run.updates) for run in runs) > 1:
        return Line(name, points, number)
    return Line(ALONE if len(runs) == 1 else f"{name}: {ALONE}", points, number, band)


def survival_lines(runs: Sequence[Run]) -> list[Line]:
    """Weighted by the edges that each layer's update before had grown."""
    lines = []
    for number, run in enumerate(runs):
        grown: dict[str, float] = {}
        points, band = [], []
        for step, rows in by_step(run.updates).items():
            known = [(row["survived"], grown[row["layer"]]) for row in rows if is_known(row, grown)]
            if known:
                points.append((step, sum(share * count for share, count in known) / sum(count for _, count in known)))
                band.append((step, min(share for share, _ in known), max(share for share, _ in known)))
            grown |= {row["layer"]: row["replaced"] for row in rows if row.get("replaced")}
        if points:
            lines.append(line_of(runs, number, points, band))
    return lines


def is_known(row: Row, grown: dict[str, float]) -> bool:
    return row.get("survived") is not None and row["layer"] in grown


def replaced_share(rows: list[Row]) -> float | None:
    edges = sum(row["nnz"] or 0 for row in rows)
    return sum(row["replaced"] or 0 for row in rows) / edges if edges else None


def layer_replaced(row: Row) -> float | None:
    return row["replaced"] / row["nnz"] if row.get("nnz") else None


def first_share(rows: list[Row]) -> float | None:
    if any(row.get("first") is None for row in rows):
        return None
    edges = sum(row["nnz"] for row in rows)
    return sum(row["first"] * row["nnz"] for row in rows) / edges if edges else None


def spread_in(row: Row) -> float | None:
    return row["fan_in_deviation"] / row["fan_in_mean"] if row.get("fan_in_mean") else None


def spread_out(row: Row) -> float | None:
    return row["fan_out_deviation"] / row["fan_out_mean"] if row.get("fan_out_mean") else None


def mean_of(value: Value) -> Total:
    def total(rows: list[Row]) -> float | None:
        values = [each for row in rows if (each := value(row)) is not None]
        return sum(values) / len(values) if values else None

    return total


def sum_of(column: str) -> Total:
    def total(rows: list[Row]) -> float | None:
        values = [row[column] for row in rows if row.get(column) is not None]
        return sum(values) if values else None

    return total


def layer_norm(row: Row) -> float | None:
    return row.get("grad_norm")


def norm_of_all(rows: list[Row]) -> float | None:
    norms = [row["grad_norm"] for row in rows if row.get("grad_norm") is not None]
    return math.sqrt(sum(norm**2 for norm in norms)) if norms else None


def resource_charts(runs: Sequence[Run]) -> list[Markup | None]:
    """Time of a step and of updates, and memory, over the run."""

    def memory(column: str) -> list[Line]:
        return lines_of(runs, lambda run: resource_points(run, column, None))

    def mebibytes(value: float | None) -> str:
        return plain(None if value is None else round(value / MIB, 2))

    return [
        line_figure("step-time", "Time of a step", "ms, mean of the epoch", "epoch", lines_of(runs, step_times),
                    form=milliseconds, scale=1000, from_zero=True),
        line_figure("update-time", "Time of an update", "ms", "step",
                    lines_of(runs, lambda run: resource_points(run, "seconds", "update")),
                    form=milliseconds, scale=1000, from_zero=True),
        line_figure("resident", "Resident memory of the process", "MiB", "step", memory("resident"),
                    form=mebibytes, scale=1 / MIB),
        line_figure("device", "Memory of tensors on the device", "MiB", "step", memory("device"),
                    form=mebibytes, scale=1 / MIB),
    ]  # fmt: skip


def resource_points(run: Run, column: str, what: str | None) -> list[Point]:
    rows = (row for row in run.resources if what is None or row["what"] == what)
    return [(row["step"], row[column]) for row in rows if row.get(column) is not None]


def step_times(run: Run) -> list[Point]:
    """Seconds a step, by epoch."""
    points, before = [], 0.0
    for row in run.epochs:
        steps, before = row["step"] - before, row["step"]
        if row.get("seconds") is not None and row.get("epoch") is not None and steps > 0:
            points.append((row["epoch"], row["seconds"] / steps))
    return points


def update_share(run: Run) -> float | None:
    """The updates' share of the time spent in training steps; without the drawing of candidates in backward."""
    updates = sum(seconds for _, seconds in resource_points(run, "seconds", "update"))
    whole = sum(value for value in run.column("seconds") if value is not None)
    return updates / whole if updates and whole else None


def turnover(run: Run) -> dict[str, float]:
    """Layer: edges replaced in the whole run, as a multiple of its edges."""
    return {
        name: sum(row["replaced"] or 0 for row in rows) / rows[-1]["nnz"]
        for name, rows in by_layer(run.updates).items()
        if rows[-1].get("nnz")
    }


def mean_survival(run: Run) -> dict[str, float]:
    """Layer: share of the grown edges that were there after the next update, over all updates."""
    found = {}
    for name, rows in by_layer(run.updates).items():
        grown, survived, before = 0.0, 0.0, 0.0
        for row in rows:
            if row.get("survived") is not None and before:
                grown, survived = grown + before, survived + row["survived"] * before
            before = row.get("replaced") or before
        if grown:
            found[name] = survived / grown
    return found
