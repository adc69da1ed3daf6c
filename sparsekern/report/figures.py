"""A chart on the page: its name, the drawing, a legend in words, and the data behind it as a table."""

from __future__ import annotations

from collections.abc import Sequence

from sparsekern.report.degrees import Bin, Degrees, binned
from sparsekern.report.markup import Markup, bullets, folded, join, table, tag
from sparsekern.report.numbers import Format, is_finite, plain
from sparsekern.report.svg import (
    HEIGHT,
    Band,
    Line,
    Scale,
    bar_drawing,
    heat_drawing,
    histogram_drawing,
    line_drawing,
    picture,
    sample,
)

MOST_HEAT_COLUMNS = 40


def figure(key: str, title: str, unit: str, description: str, height: float, drawing: str, *below: str) -> Markup:
    name = tag("figcaption", f"{title} ", tag("span", f"[{unit}]") if unit else None)
    return tag("figure", name, picture(key, title, description, height, drawing), *below)


def line_figure(
    key: str,
    title: str,
    unit: str,
    x_label: str,
    lines: Sequence[Line],
    *,
    form: Format = plain,
    scale: float = 1.0,
    log: bool = False,
    from_zero: bool = False,
) -> Markup | None:
    """Lines; None where no line has a point. Numbers that are not finite are in the table alone.

    Args:
        key: of the element's ids, its own on the page.
        x_label: what x is.
        form: how the table and the description write a number.
        scale: by which a number is multiplied for the drawing: 100 for percent.
    """
    drawn = [
        Line(line.name, kept, line.number, scaled_band(line, scale, log))
        for line in lines
        if (kept := [(x, scale * y) for x, y in line.points if is_finite(y) and not (log and y <= 0)])
    ]
    if not drawn:
        return None
    described = "; ".join(
        f"{line.name}: from {form(line.points[0][1])} to {form(line.points[-1][1])}, lowest "
        f"{form(min(y for _, y in line.points))}, highest {form(max(y for _, y in line.points))}"
        for line in lines
        if line.points
    )
    xs = [x for line in drawn for x, _ in line.points]
    about = f"Line chart over {x_label}, {plain(min(xs))} to {plain(max(xs))}. {described}."
    legend = bullets((tag("span", sample(line), line.name) for line in drawn), "legend")
    drawing = line_drawing(drawn, x_label, log=log, from_zero=from_zero)
    return figure(key, title, unit, about, HEIGHT, drawing, legend, data(title, x_label, lines, form))


def scaled_band(line: Line, scale: float, log: bool) -> Band | None:
    """The band as it is drawn; on a logarithmic axis it ends at the lowest number above 0."""
    if line.band is None:
        return None
    if log:
        positive = [edge for _, *edges in line.band for edge in edges if edge > 0]
        floor = min(positive, default=0.0)
        band = [(x, max(low, floor), high) for x, low, high in line.band if high > 0]
    else:
        band = line.band
    return [(x, scale * low, scale * high) for x, low, high in band] or None


def data(title: str, x_label: str, lines: Sequence[Line], form: Format) -> Markup:
    """All points, a row an x."""
    values = [dict(line.points) for line in lines]
    header = [x_label]
    for line in lines:
        header += [line.name, *(("lowest layer", "highest layer") if line.band else ())]
    bands = [{x: (low, high) for x, low, high in line.band or []} for line in lines]
    rows = []
    for x in sorted({x for line in lines for x, _ in line.points}):
        cells = [plain(x)]
        for line, points, band in zip(lines, values, bands, strict=True):
            cells.append(form(points.get(x)))
            if line.band:
                cells += [form(edge) for edge in band.get(x, (None, None))]
        rows.append(cells)
    return folded(f"Data: {title}", table(title, header, rows))


def histogram_figure(key: str, layer: str, degrees: Degrees) -> Markup:
    """Fan-in and fan-out of a layer, side by side."""
    bins = binned(degrees.fan_in), binned(degrees.fan_out)
    about = (
        f"Two histograms. {degrees.rows:,} rows have {between(bins[0])} edges, "
        f"{degrees.columns:,} columns have {between(bins[1])}."
    )
    panels = [("fan-in: edges of a row", bins[0]), ("fan-out: edges of a column", bins[1])]
    rows: list[list[str]] = []
    for side, of_side in zip(("rows", "columns"), bins, strict=True):
        rows += [[side, str(first) if first == last else f"{first} to {last}", plain(n)] for first, last, n in of_side]
    below = folded(f"Data: {layer}", table(f"Fan-in and fan-out of {layer}", ["of", "edges", "how many"], rows))
    return figure(key, layer, "rows, columns", about, 150, histogram_drawing(panels), below)


def between(bins: Sequence[Bin]) -> str:
    low, high = bins[0][0], bins[-1][1]
    return f"{low}" if low == high else f"{low} to {high}"


def bar_figure(
    key: str, title: str, groups: Sequence[tuple[str, Sequence[tuple[str, float, str]]]], *below: str
) -> Markup:
    """Bars in groups; see `bar_drawing`. The table behind them is the caller's to give."""
    drawing, height = bar_drawing(groups)
    about = "Bar chart. " + "; ".join(
        f"{name}: {', '.join(f'{bar} {label}' for bar, _, label in bars)}" for name, bars in groups
    )
    return figure(key, title, "", f"{about}.", height, drawing, *below)


def heat_figure(
    key: str,
    title: str,
    x_label: str,
    names: Sequence[str],
    xs: Sequence[float],
    values: Sequence[Sequence[float | None]],
    *,
    form: Format = plain,
    log: bool = False,
) -> Markup | None:
    """A cell a name and x, at most `MOST_HEAT_COLUMNS` of them, evenly chosen; None where no value is a number."""
    stride = max(1, -(-len(xs) // MOST_HEAT_COLUMNS))
    xs = xs[::stride]
    cells = [[value if is_finite(value) else None for value in row[::stride]] for row in values]
    numbers = [value for row in cells for value in row if value is not None]
    if log:
        numbers = [value for value in numbers if value > 0]
        cells = [[value if value is not None and value > 0 else None for value in row] for row in cells]
    if not numbers:
        return None
    low, high = min(numbers), max(numbers)
    drawing, height = heat_drawing(names, cells, Scale(low, high, 0, 1, log))
    chosen = f", every {ordinal(stride)} shown" if stride > 1 else ""
    key_line = tag(
        "p", f"From left to right: {x_label}{chosen}. Palest {form(low)}, strongest {form(high)}.", class_="note"
    )
    about = f"A row a layer, {x_label} {plain(xs[0])} to {plain(xs[-1])}{chosen}; from {form(low)} to {form(high)}."
    rows = [[name, *(form(value) for value in row)] for name, row in zip(names, cells, strict=True)]
    header = ["layer", *(plain(x) for x in xs)]
    below = folded(f"Data: {title}", table(f"{title}, by {x_label}", header, rows))
    return figure(key, title, "", about, height, drawing, key_line, below)


def ordinal(number: int) -> str:
    return {2: "second", 3: "third"}.get(number, f"{number}th")


def grid(figures: Sequence[Markup | None]) -> Markup:
    return tag("div", join(each for each in figures if each is not None), class_="charts")
