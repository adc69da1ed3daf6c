"""Charts as inline SVG.

Drawn here, and not by matplotlib: these have to take the page's colours, dark ones too, from its style sheet, to keep
text that is text at the size of the page's own on a phone, to be read out, and to need nothing that is not installed.
matplotlib's SVG fixes colours and turns text into outlines; libraries of interactive charts bring megabytes of script.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from sparsekern.report.colours import SERIES
from sparsekern.report.markup import Markup, join, tag
from sparsekern.report.numbers import log_ticks, short, thinned, ticks

# Units of the drawings; a phone shows them about as large as its own pixels.
WIDTH, HEIGHT = 360, 220
LEFT, RIGHT, TOP, BOTTOM = 46, 10, 10, 36
DIGIT = 7  # the width of one in a wide font
DASHES = (None, "7 3", "2 2", "9 3 2 3", "12 4", "4 2 1 2")
MARKERS = ("circle", "square", "triangle", "diamond", "cross", "down")
MARKS_A_LINE = 7
Point = tuple[float, float]
Band = list[tuple[float, float, float]]


@dataclass(frozen=True)
class Line:
    """A line of a chart, whose look comes from its number; `band` are (x, lowest, highest) around it."""

    name: str
    points: list[Point]
    number: int = 0
    band: Band | None = None

    @property
    def dress(self) -> str:
        return f"s{self.number % SERIES}"

    @property
    def pattern(self) -> int:
        """Of dashes and marker: no two of the first 36 lines share both this and the colour."""
        return (self.number + self.number // SERIES) % len(DASHES)


@dataclass(frozen=True)
class Scale:
    """From numbers to places."""

    low: float
    high: float
    start: float
    stop: float
    log: bool = False

    def __call__(self, value: float) -> float:
        return round(self.start + self.share(value) * (self.stop - self.start), 1)

    def share(self, value: float) -> float:
        """0 at the low end, 1 at the high one."""
        low, high, at = self.low, self.high, value
        if self.log:
            low, high, at = math.log10(low), math.log10(high), math.log10(value)
        return (at - low) / (high - low) if high > low else 0.5

    def ticks(self, count: int) -> list[float]:
        return log_ticks(self.low, self.high) if self.log else ticks(self.low, self.high, count)


def picture(key: str, title: str, description: str, height: float, *shapes: str) -> Markup:
    """A chart with its name and what a listener is told of it."""
    return tag(
        "svg",
        tag("title", title, id=f"{key}-title"),
        tag("desc", description, id=f"{key}-desc"),
        *shapes,
        viewBox=f"0 0 {WIDTH} {height:g}",
        role="img",
        aria_labelledby=f"{key}-title {key}-desc",
        class_="chart",
    )


def frame(x: Scale, y: Scale, x_label: str, whole: bool = False) -> Iterator[Markup]:
    """Rules across, and both axes' numbers: all of them, or whole ones alone."""
    for tick in y.ticks(5):
        if whole and not float(tick).is_integer():
            continue
        at = y(tick)
        yield tag("line", x1=x.start, x2=x.stop, y1=at, y2=at, class_="rule")
        yield tag("text", short(tick), x=x.start - 5, y=at + 4, class_="end")
    for tick in x.ticks(5):
        if whole and not float(tick).is_integer():
            continue
        yield tag("text", short(tick), x=x(tick), y=y.start + 15, class_="middle")
    yield tag("text", x_label, x=(x.start + x.stop) / 2, y=y.start + 30, class_="middle")


def line_drawing(lines: Sequence[Line], x_label: str, *, log: bool = False, from_zero: bool = False) -> Markup:
    """Lines over a common x."""
    xs = [x for line in lines for x, _ in line.points]
    ys = [y for line in lines for _, y in line.points]
    ys += [edge for line in lines for _, *edges in line.band or [] for edge in edges]
    low, high = min(ys), max(ys)
    if from_zero:
        low = min(low, 0.0)
    if high == low:
        low, high = (low / 2, high * 2) if log else (low, high + (abs(high) or 1.0))
    margin = 0.0 if log else 0.04 * (high - low)
    low = low if from_zero and low == 0 else low - margin
    y = Scale(low, high + margin, HEIGHT - BOTTOM, TOP, log)
    longest = max((len(short(tick)) for tick in y.ticks(5)), default=0)
    x = Scale(min(xs), max(xs), max(LEFT, 6 + DIGIT * longest), WIDTH - RIGHT)
    shapes = list(frame(x, y, x_label))
    for line in lines:
        if line.band:
            upper = [(x(at), y(highest)) for at, _, highest in line.band]
            lower = [(x(at), y(lowest)) for at, lowest, _ in reversed(line.band)]
            shapes.append(tag("path", d=path(upper + lower) + "Z", class_=f"band {line.dress}"))
    for line in lines:
        places = [(x(at), y(value)) for at, value in thinned(line.points)]
        dash = DASHES[line.pattern]
        shapes.append(tag("path", d=path(places), stroke_dasharray=dash, class_=f"line {line.dress}"))
        shapes += marks(line, places)
    return join(shapes)


def marks(line: Line, places: Sequence[Point]) -> Iterator[Markup]:
    """A few markers along a line, those of different lines at different places."""
    stride = max(1, len(places) // MARKS_A_LINE)
    for at in range((line.number * stride // 3) % stride, len(places), stride):
        yield marker(MARKERS[line.pattern], *places[at], line.dress)


def marker(kind: str, x: float, y: float, dress: str) -> Markup:
    look = f"mark {dress}"
    if kind == "circle":
        return tag("circle", cx=x, cy=y, r=3, class_=look)
    shape = {
        "square": "m-2.7 -2.7h5.4v5.4h-5.4z",
        "triangle": "m0 -3.6l3.4 6h-6.8z",
        "diamond": "m0 -3.8l3.4 3.8l-3.4 3.8l-3.4 -3.8z",
        "cross": "m-3 -3l6 6m0 -6l-6 6",
        "down": "m0 3.6l3.4 -6h-6.8z",
    }[kind]
    return tag("path", d=f"M{x:g} {y:g}{shape}", class_=look)


def sample(line: Line) -> Markup:
    """A line's look, for a legend that names it in words."""
    stroke = tag("path", d="M1 6H33", stroke_dasharray=DASHES[line.pattern], class_=f"line {line.dress}")
    mark = marker(MARKERS[line.pattern], 17, 6, line.dress)
    return tag("svg", stroke, mark, viewBox="0 0 34 12", aria_hidden="true")


def path(places: Sequence[Point]) -> str:
    return "M" + "L".join(f"{x:g} {y:g}" for x, y in places)


def histogram_drawing(panels: Sequence[tuple[str, Sequence[tuple[int, int, int]]]]) -> Markup:
    """Histograms side by side: (what is counted along x, bins of (first, last, count)) each."""
    width = (WIDTH - RIGHT) / len(panels)
    shapes: list[Markup] = []
    for number, (label, bins) in enumerate(panels):
        start = number * width + LEFT - 8
        x = Scale(bins[0][0] - 0.5, bins[-1][1] + 0.5, start, (number + 1) * width)
        y = Scale(0, max(count for *_, count in bins), 150 - BOTTOM, TOP)
        shapes += frame(x, y, label, whole=True)
        for first, last, count in bins:
            left, right, top = x(first - 0.5), x(last + 0.5), y(count)
            gap = min(1.0, (right - left) / 5)
            shapes.append(
                tag("rect", x=left, y=top, width=f"{right - left - gap:.1f}", height=f"{y.start - top:.1f}",
                    class_=f"bar s{number}")
            )  # fmt: skip
    return join(shapes)


def bar_drawing(groups: Sequence[tuple[str, Sequence[tuple[str, float, str]]]]) -> tuple[Markup, float]:
    """Bars to the right, in groups: (name, (bar's name, length, label) ...). Returns the drawing and its height.

    Names and labels are text beside the bars; the second of a group is hollow.
    """
    longest = max((length for _, bars in groups for _, length, _ in bars), default=0) or 1
    start, room = 62, WIDTH - 62 - 74
    shapes, y = [], 4.0
    for name, bars in groups:
        shapes.append(tag("text", name, x=2, y=y + 11))
        y += 17
        for number, (bar, length, label) in enumerate(bars):
            width = max(1.0, room * length / longest)
            look = f"{'hollow' if number else 'bar'} s{number}"
            shapes.append(tag("text", bar, x=start - 6, y=y + 9, class_="end"))
            shapes.append(tag("rect", x=start, y=y + 1, width=f"{width:.1f}", height=8, class_=look))
            shapes.append(tag("text", label, x=f"{start + width + 6:.1f}", y=y + 9))
            y += 14
        y += 6
    return join(shapes), y


def heat_drawing(names: Sequence[str], values: Sequence[Sequence[float | None]], scale: Scale) -> tuple[Markup, float]:
    """A row a name, a cell a value: the stronger the higher, a dashed outline where there is none. And its height."""
    left, top, row = 118, 2, 13
    columns = max(map(len, values))
    width = (WIDTH - left - 2) / max(1, columns)
    shapes = []
    for index, (name, cells) in enumerate(zip(names, values, strict=True)):
        y = top + index * row
        shapes.append(tag("text", shortened(name), x=left - 5, y=y + 10, class_="end"))
        for column, value in enumerate(cells):
            box: dict[str, str | float | None] = {
                "x": f"{left + column * width:.1f}",
                "y": y,
                "width": f"{max(0.5, width - 0.6):.1f}",
                "height": row - 1,
            }
            if value is None:
                shapes.append(tag("rect", **box, class_="missing"))
            else:
                opacity = f"{0.08 + 0.92 * scale.share(value):.2f}"
                shapes.append(tag("rect", **box, fill_opacity=opacity, class_="cell"))
    return join(shapes), top + len(names) * row + 2


def shortened(name: str, most: int = 19) -> str:
    """A name with its middle left out."""
    return name if len(name) <= most else f"{name[: most // 2 - 1]}…{name[-(most // 2) :]}"
