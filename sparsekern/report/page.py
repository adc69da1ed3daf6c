"""The page as a whole."""

from __future__ import annotations

from collections.abc import Sequence

from sparsekern.report.curves import resource_charts, topology_charts, training_charts
from sparsekern.report.figures import grid
from sparsekern.report.markup import Markup, bullets, folded, join, tag
from sparsekern.report.runs import Run
from sparsekern.report.sections import budget, configuration, differences, layers_of, overview
from sparsekern.report.style import style_sheet


def render(runs: Sequence[Run]) -> str:
    """The HTML of one run or of a comparison: it needs no other file and no network, and has no script."""
    names = [run.name for run in runs]
    title = f"Run {names[0]}" if len(runs) == 1 else f"Comparison of {len(runs)} runs"
    sections = sections_of(runs)
    links = bullets(tag("a", heading, href=f"#{key}") for key, heading, _ in sections)
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", f"{title}, sparsekern report"),
        tag("style", Markup(style_sheet())),
    )
    body = tag(
        "body",
        tag("a", "Skip to the content", href="#content", class_="skip"),
        tag("header", tag("h1", title), tag("nav", links, aria_label="Sections")),
        tag(
            "main",
            *(
                tag(
                    "section",
                    tag("h2", heading, id=f"{key}-name"),
                    content,
                    id=key,
                    aria_labelledby=f"{key}-name",
                )
                for key, heading, content in sections
            ),
            id="content",
        ),
        tag("footer", tag("p", "Made by sparsekern report from the files of the runs.")),
    )
    return f"<!DOCTYPE html>\n{tag('html', head, body, lang='en')}\n"


def sections_of(runs: Sequence[Run]) -> list[tuple[str, str, Markup]]:
    """(id, heading, content) of each section that has something to say."""
    sections = [("runs", "Result" if len(runs) == 1 else "Runs", overview(runs))]
    if len(runs) > 1:
        sections.append(("differences", "What differs", differences(runs)))
    if any(run.epochs for run in runs):
        sections.append(("training", "Training", grid(training_charts(runs))))
    sparse = [run for run in runs if not run.is_dense]
    if any(run.updates for run in sparse):
        charts = join([tag("p", TOPOLOGY, class_="note"), grid(topology_charts(runs))])
        sections.append(("topology", "Topology", charts))
    if sparse:
        sections.append(("layers", "Layers", layers(runs)))
    if any(run.epochs or run.resources for run in runs):
        sections.append(("time", "Time and memory of the process", grid(resource_charts(runs))))
    if sparse:
        sections.append(("budget", "Memory and time, sparse against dense", budget(runs)))
    sections.append(("configuration", "Configuration and versions", configuration(runs)))
    return sections


TOPOLOGY = (
    "At each update of the topology. Survival is that of the edges that the update before had grown; the others are of "
    "the layers together. Spread: standard deviation over mean of the edges a row (column), mean of the layers."
)


def layers(runs: Sequence[Run]) -> Markup:
    parts = []
    for number, run in enumerate(runs):
        content = layers_of(run, f"run-{number}")
        parts.append(content if len(runs) == 1 else folded(f"Layers of {run.name}", content))
    return join(parts)
