"""Text for a screen, and pages of GitHub-flavoured Markdown."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence

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
    header, *rows = cells
    marks = ["---:" if number else "---" for number in numbers]
    return "\n".join(f"| {' | '.join(row)} |" for row in (header, marks, *rows))


def page(paragraphs: Iterable[str]) -> str:
    """A Markdown page of prose, which is wrapped, and of headings, tables, pictures and code, which stay."""
    lines = [text if text[0] in "#|!<`" else textwrap.fill(text, 118, break_on_hyphens=False) for text in paragraphs]
    return "\n\n".join(lines) + "\n"
