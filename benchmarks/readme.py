"""Copies measured tables and charts into README.md.

Between `<!-- tables of PAGE -->` and `<!-- end -->` stand the tables of that page, with their headings;
`PAGE#section` names the part of it under that second-level heading. Between `<!-- chart FILE: what it shows -->` and
`<!-- end -->` stands that picture.
"""

from __future__ import annotations

import re

from benchmarks.options import ROOT, Readme

TABLES = re.compile(r"(<!-- tables of ([^\s#]+)#?(\S*) -->\n)(.*?)(<!-- end -->)", re.DOTALL)
CHARTS = re.compile(r"(<!-- chart (\S+): ([^>]*) -->\n)(.*?)(<!-- end -->)", re.DOTALL)


def tables(page: str) -> str:
    """A page's tables, each after its third-level heading if it has one, as a bold line."""
    kept: list[str] = []
    before = ""
    for line in page.splitlines():
        if line.startswith("### "):
            kept += ["", f"**{line[4:]}**", ""]
        elif line.startswith("|"):
            if kept and kept[-1] and not before.startswith("|"):
                kept.append("")  # or two tables would be one
            kept.append(line)
        before = line
    return "\n".join(kept).strip("\n")


def section(page: str, name: str) -> str:
    """The part of a page under the second-level heading of this name, in lower case and with hyphens for spaces."""
    parts = dict(re.findall(r"^## (.*?)$(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL))
    by_name = {heading.lower().replace(" ", "-"): part for heading, part in parts.items()}
    if name not in by_name:
        raise ValueError(f"the page has no section {name!r}; it has {', '.join(by_name)}")
    return by_name[name]


def updated(text: str) -> str:
    """The text with every marked place filled from its file; a file that is not there yet leaves it as it is."""

    def fill_tables(match: re.Match[str]) -> str:
        if not (ROOT / match[2]).exists():
            return match[0]
        page = (ROOT / match[2]).read_text()
        return f"{match[1]}\n{tables(section(page, match[3]) if match[3] else page)}\n\n{match[5]}"

    def fill_chart(match: re.Match[str]) -> str:
        return f"{match[1]}\n![{match[3]}]({match[2]})\n\n{match[5]}" if (ROOT / match[2]).exists() else match[0]

    return CHARTS.sub(fill_chart, TABLES.sub(fill_tables, text))


def run(options: Readme) -> None:
    options.file.write_text(updated(options.file.read_text()))
    print(f"filled {options.file}")
