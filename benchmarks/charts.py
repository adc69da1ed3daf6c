"""What all charts share: colours, grids, and a message where matplotlib is missing."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

OURS, ORANGE, GREEN, PALE, GREY, TEXT = "#1f5fa8", "#c2571a", "#3f8f5f", "#aab4c0", "#6b7683", "#2b3138"
# In all charts a library has the same colour and mark.
STYLES = {
    "sparsekern": {"color": OURS, "marker": "o", "linewidth": 2.2, "zorder": 4},
    "SparseProp": {"color": ORANGE, "marker": "s", "linewidth": 1.3},
    "sparselab": {"color": GREEN, "marker": "^", "linewidth": 1.3},
    "torch CSR": {"color": GREY, "marker": "D", "linewidth": 1.3},
}


def figure(width: float, height: float) -> Figure | None:
    """A new figure in inches, or None and a message where matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        print("no charts: matplotlib is not installed (the extra `bench` has it)", flush=True)
        return None
    return Figure(figsize=(width, height), layout="constrained")


def finish(axes: Axes, grid: Literal["both", "x"] = "both") -> None:
    """A pale grid, no frame above and to the right."""
    axes.grid(axis=grid, color="#e4e8ec", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8.5)


def stacked_bars(
    axes: Axes, names: list[str], parts: dict[str, list[float]], colors: dict[str, str], unit: str, title: str
) -> list[float]:
    """A horizontal bar for each name, made of the parts' lengths. Returns the bars' ends."""
    ends = [0.0] * len(names)
    for part, lengths in parts.items():
        axes.barh(range(len(names)), lengths, left=ends, color=colors[part], label=part, height=0.7)
        ends = [end + length for end, length in zip(ends, lengths, strict=True)]
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_title(title, fontsize=10, color=TEXT, loc="left")
    axes.set_xlabel(unit, fontsize=9)
    finish(axes, grid="x")
    return ends


def legend_above(figure: Figure, axes: Axes, columns: int) -> None:
    """One legend for all panels, of this one's marks."""
    marks = axes.get_legend_handles_labels()
    figure.legend(*marks, loc="outside upper center", ncols=columns, frameon=False, fontsize=9)


def label_bars(axes: Axes, places: list[float], texts: list[str]) -> None:
    """Writes a text to the right of each bar's place and leaves room for it."""
    for position, (place, text) in enumerate(zip(places, texts, strict=True)):
        axes.text(place, position, f"  {text}", va="center", fontsize=8.5, color=TEXT)
    axes.set_xlim(0, 1.16 * max(places, default=1.0))


def save(chart: Figure, folder: Path, name: str) -> str:
    """Writes the picture and returns its file name."""
    folder.mkdir(parents=True, exist_ok=True)
    chart.savefig(folder / f"{name}.png", dpi=130)
    print(f"written to {folder / name}.png", flush=True)
    return f"{name}.png"
