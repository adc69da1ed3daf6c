"""HTML in which all text is escaped: only what `tag` made passes as it is."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence

VOID = frozenset({"meta", "br", "col"})


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


def tag(name: str, /, *children: str | None, **attributes: str | float | None) -> Markup:
    """An element. Children that are no `Markup` are escaped, and None is left out; so is an attribute that is None.

    An attribute's trailing underscore goes (`class_`), others become hyphens (`stroke_width`).
    """
    words = [name]
    for key, value in attributes.items():
        if value is not None:
            words.append(f'{key.rstrip("_").replace("_", "-")}="{html.escape(str(value))}"')
    opening = f"<{' '.join(words)}>"
    return Markup(opening) if name in VOID else Markup(f"{opening}{join(children)}</{name}>")


def join(children: Iterable[str | None], between: str = "") -> Markup:
    """The children after each other."""
    parts = (each if isinstance(each, Markup) else html.escape(each) for each in children if each is not None)
    return Markup(between.join(parts))


def table(caption: str, header: Sequence[str], rows: Iterable[Sequence[str]], kind: str | None = None) -> Markup:
    """A table whose first column names its rows, in a box of its own that scrolls where the screen is narrow."""
    head = tag("tr", *(tag("th", text, scope="col") for text in header))
    body = (
        tag("tr", tag("th", first, scope="row"), *(tag("td", cell) for cell in cells), Markup("\n"))
        for first, *cells in rows
    )
    whole = tag("table", tag("caption", caption), tag("thead", head), tag("tbody", *body), class_=kind)
    return tag("div", whole, class_="scroll", role="group", aria_label=caption, tabindex="0")


def folded(summary: str, *children: str | None, opened: bool = False) -> Markup:
    """What is shown when it is asked for."""
    return tag("details", tag("summary", summary), *children, open="" if opened else None)


def bullets(items: Iterable[str], kind: str | None = None) -> Markup:
    return tag("ul", *(tag("li", item) for item in items), class_=kind)
