"""Tables as text: columns aligned for a screen, or GitHub-flavoured Markdown."""

from __future__ import annotations

from collections.abc import Sequence

Cells = Sequence[Sequence[str]]  # the header first


def aligned(cells: Cells, numbers: Sequence[bool]) -> str:
    """A line a row; `numbers` says which columns are aligned to the right."""
    widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
    pads = [str.rjust if number else str.ljust for number in numbers]
    return "\n".join(
        "  ".join(pad(cell, width) for pad, cell, width in zip(pads, row, widths, strict=True)).rstrip()
        for row in cells
    )


def markdown(cells: Cells, numbers: Sequence[bool]) -> str:
    """The same as a Markdown table."""
    lines = ["| " + " | ".join(row) + " |" for row in cells]
    lines.insert(1, "|" + "|".join("---:" if number else "---" for number in numbers) + "|")
    return "\n".join(lines)
