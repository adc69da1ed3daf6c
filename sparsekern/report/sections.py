"""The page's sections."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sparsekern.report.curves import mean_survival, turnover, update_share
from sparsekern.report.degrees import spread
from sparsekern.report.figures import bar_figure, grid, heat_figure, histogram_figure
from sparsekern.report.markup import Markup, bullets, folded, join, table, tag
from sparsekern.report.numbers import ABSENT, milliseconds, percent, plain, ratio
from sparsekern.report.runs import Run, by_layer
from sparsekern.training.report import MEMORY_LINES, show_bytes

VERSIONS = {"sparsekern": "sparsekern", "torch": "torch", "python": "Python", "machine": "processor",
            "device": "device", "processes": "processes", "threads": "threads of each"}  # fmt: skip


def overview(runs: Sequence[Run]) -> Markup:
    """What each run amounts to, and what is missing of it."""
    header = ["run", "state", "method", "density", "test accuracy", "test loss", "weights", "time a step", "storage",
              "of dense"]  # fmt: skip
    rows = [[run.name, run.state, run.method, *figures_of(run)] for run in runs]
    missing = [f"{run.name}: {problem}" for run in runs for problem in run.problems]
    notes = tag("div", tag("h3", "What is missing"), bullets(missing)) if missing else None
    return join([table("The runs", header, rows), tag("p", STORAGE, class_="note"), notes])


STORAGE = (
    "Accuracy and loss after the last epoch. Weights: those that exist in linear and convolutional layers. Storage is "
    "what lives from step to step: weights, indices, gradients, optimizer state, other parameters and buffers; of "
    "dense: its share of what the dense network would hold."
)


def figures_of(run: Run) -> list[str]:
    density = "1" if run.is_dense else f"{run.config.sparsity.density:g}"
    accuracy, loss = percent(run.last("test_accuracy")), plain(run.last("test_loss"))
    summary = run.summary
    if summary is None:
        return [density, accuracy, loss, ABSENT, ABSENT, ABSENT, ABSENT]
    held, dense = summary["memory"]["total"], summary["dense_memory"]["total"]
    step = milliseconds(summary["seconds_per_step"])
    return [density, accuracy, loss, plain(summary["nnz"]), step, show_bytes(held), ratio(held, dense)]


def differences(runs: Sequence[Run]) -> Markup:
    """What the runs' configurations differ in."""
    options = [flat(run) for run in runs]
    differing = [name for name in options[0] if len({each[name] for each in options}) > 1]
    if not differing:
        return tag("p", "All options are the same.")
    rows = [[name, *(each[name] for each in options)] for name in differing]
    return table("Options that differ", ["option", *(run.name for run in runs)], rows, "words")


WITHOUT_EFFECT = ("output", "checkpoint_every", "stop_after", "plots", "tensorboard", "twin")


def flat(run: Run) -> dict[str, str]:
    """Every option and its value, but for those that change nothing of what the page shows."""
    return {
        f"{section}.{name}": show_option(value)
        for section, values in run.config.to_dict().items()
        for name, value in values.items()
        if section != "run" or name not in WITHOUT_EFFECT
    }


def show_option(value: Any) -> str:
    if value is None:
        return "default"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(map(str, value)) or "none" if isinstance(value, (list, tuple)) else str(value)


def configuration(runs: Sequence[Run]) -> Markup:
    """Versions, and all options of each run."""
    rows = [[run.name, *(str((run.summary or {}).get(key, ABSENT)) for key in VERSIONS)] for run in runs]
    parts = [table("Versions and machine, as each run ended", ["run", *VERSIONS.values()], rows, "words")]
    for run in runs:
        options = table(f"Options of {run.name}", ["option", "value"], list(flat(run).items()), "words")
        parts.append(folded(f"Options of {run.name}", tag("p", "Folder: ", tag("code", str(run.path))), options))
    return join(parts)


def layers_of(run: Run, key: str) -> Markup:
    """Density, turnover, survival, spread and dead neurons of each layer, and the histograms."""
    parts = [layer_table(run)]
    updates, norms = by_layer(run.updates), by_layer(run.layers)
    heats = [
        heat(f"{key}-survival", "Survival of grown edges in the layers", "step", updates, "survived", form=percent),
        heat(f"{key}-norms", "Gradient norm of the layers", "epoch", norms, "grad_norm", log=True),
    ]
    parts.append(grid(heats))
    if run.degrees:
        histograms = [
            histogram_figure(f"{key}-fan-{number}", name, degrees)
            for number, (name, degrees) in enumerate(run.degrees.items())
        ]
        parts += [
            tag("h3", f"Fan-in and fan-out at step {plain(run.saved_step)}, from the checkpoint"),
            grid(histograms),
        ]
    return join(parts)


def heat(
    key: str, title: str, x: str, rows: dict[str, list[dict[str, Any]]], column: str, **options: Any
) -> Markup | None:
    values = {name: {row[x]: row.get(column) for row in of_layer} for name, of_layer in rows.items()}
    xs = sorted({at for of_layer in values.values() for at in of_layer if at is not None})
    cells = [[of_layer.get(at) for at in xs] for of_layer in values.values()]
    return heat_figure(key, title, x, list(values), xs, cells, **options) if xs else None


def layer_table(run: Run) -> Markup:
    """A row a layer: sparse ones by what the checkpoint and the updates say, the others of a finished run by size."""
    replaced, survived = turnover(run), mean_survival(run)
    norms = {name: rows[-1].get("grad_norm") for name, rows in by_layer(run.layers).items()}
    sizes = {each["name"]: each for each in (run.summary or {}).get("layers", ())}
    names = dict.fromkeys([*sizes, *run.degrees, *by_layer(run.updates)])
    if not names:
        return tag("p", "Nothing is known of its layers yet.")
    most = max(replaced.values(), default=0.0)
    rows = []
    for name in names:
        degrees, size = run.degrees.get(name), sizes.get(name)
        if degrees is not None:
            places, nnz = degrees.rows * degrees.columns, degrees.nnz
        elif size is not None:
            places, nnz = size["weights"], size["nnz"]
        else:
            last = by_layer(run.updates)[name][-1]
            nnz, places = int(last["nnz"]), round(last["nnz"] / last["density"]) if last["density"] else 0
        density = nnz / places if places else None
        rows.append(
            [
                name,
                f"{degrees.rows} x {degrees.columns}" if degrees else ABSENT,
                plain(nnz),
                meter(percent(density), density),
                meter(plain(replaced.get(name)), share(replaced.get(name), most)),
                meter(percent(survived.get(name)), survived.get(name)),
                *([", ".join(plain(each) for each in spread(side)) for side in (degrees.fan_in, degrees.fan_out)]
                  if degrees else [ABSENT, ABSENT]),
                plain(degrees.fan_in[0]) if degrees else ABSENT,
                plain(degrees.fan_out[0]) if degrees else ABSENT,
                plain(norms.get(name)),
            ]
        )  # fmt: skip
    header = ["layer", "rows x columns", "edges", "density", "turnover", "survival", "fan-in", "fan-out", "dead rows",
              "dead columns", "gradient norm"]  # fmt: skip
    return join([table(f"Layers of {run.name}", header, rows), tag("p", LAYERS, class_="note")])


LAYERS = (
    "Turnover: edges replaced in the whole run, as a multiple of the layer's edges. Survival: share of the grown edges "
    "that were still there after the next update. Fan-in and fan-out: least, median and most edges of a row and of a "
    "column. A dead row is an output without an incoming edge, which is its bias alone; a dead column is an input that "
    "no output reads (in a convolution one place of the kernel in one input channel). Gradient norm: of the weight, "
    "at the last step of the last epoch."
)


def share(value: float | None, most: float) -> float | None:
    return None if value is None or not most else value / most


def meter(text: str, part: float | None) -> Markup:
    """A number with a bar under it, which says nothing that the number does not."""
    if part is None:
        return join([text])
    width = f"width: {100 * min(max(part, 0.0), 1.0):.1f}%"
    bar = tag("span", tag("i", style=width), class_="meter", aria_hidden="true")
    return join([text, bar])


def budget(runs: Sequence[Run]) -> Markup:
    """Memory and time, sparse against dense."""
    finished = [(number, run) for number, run in enumerate(runs) if run.summary is not None and not run.is_dense]
    parts: list[Markup] = []
    for number, run in finished:
        assert run.summary is not None
        parts += [tag("h3", run.name), memory_figure(f"memory-{number}", run.summary), time_table(run, runs)]
    if not finished:
        parts.append(tag("p", "No sparse run is finished: memory and time are measured at the end."))
    return join(parts)


def memory_figure(key: str, summary: dict[str, Any]) -> Markup:
    held, dense = summary["memory"], summary["dense_memory"]
    lines = [(name, label) for name, label in MEMORY_LINES.items() if held.get(name) or dense.get(name)]
    groups = [
        (label, [("sparse", held.get(name, 0), show_bytes(held.get(name, 0))),
                 ("dense", dense.get(name, 0), show_bytes(dense.get(name, 0)))])
        for name, label in lines
    ]  # fmt: skip
    rows = [[label, *(text for *_, text in bars), ratio(bars[0][1], bars[1][1])] for label, bars in groups]
    rows.append([f"activations, batch of {summary['batch_size']}", show_bytes(summary["activations"]), ABSENT, ABSENT])
    title = f"Memory of {summary['label']}"
    behind = table(f"{title}: what lives from step to step", ["of", "sparse", "dense", "sparse / dense"], rows)
    return tag("div", bar_figure(key, "Memory from step to step", groups), behind, class_="charts")


def time_table(run: Run, runs: Sequence[Run]) -> Markup:
    """Time of a step beside that of the dense twin, where it was trained."""
    assert run.summary is not None
    own = run.summary["seconds_per_step"]
    twin = next((each for each in runs if each.path == run.path / "dense" and each.summary is not None), None)
    rows = [["time a step, sparse", milliseconds(own)]]
    if twin is not None and twin.summary is not None:
        dense = twin.summary["seconds_per_step"]
        rows += [["time a step, dense twin", milliseconds(dense)], ["sparse / dense", ratio(own, dense)]]
    else:
        rows.append(["time a step, dense twin", "not trained (--twin)"])
    rows.append(["updates' share of the training time", percent(update_share(run))])
    return table(f"Time of {run.name}", ["of", "measured"], rows)
