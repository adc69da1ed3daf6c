"""Copies measured tables into README.md: `python -m benchmarks.readme`.

Between `<!-- tables of PAGE -->` and `<!-- end -->` stand the tables of that page, with their headings.
"""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
MARKED = re.compile(r"(<!-- tables of (\S+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)


def tables(page: str) -> str:
    """A page's tables, each after its third-level heading if it has one, as a bold line."""
    kept = []
    for line in page.splitlines():
        if line.startswith("### "):
            kept.append(f"\n**{line[4:]}**\n")
        elif line.startswith("|"):
            kept.append(line)
    return "\n".join(kept).strip("\n")


def updated(text: str) -> str:
    """README's text with every marked place filled from its page; a page that is not there yet leaves it as it is."""

    def fill(match: re.Match[str]) -> str:
        page = ROOT / match[2]
        return f"{match[1]}\n{tables(page.read_text())}\n\n{match[4]}" if page.exists() else match[0]

    return MARKED.sub(fill, text)


if __name__ == "__main__":
    README.write_text(updated(README.read_text()))
