"""The page's colours, in a light and in a dark dress, and how well they can be told from their ground.

Beside its colour every line has dashes and a marker of its own, and every bar a label: colour alone says nothing.
"""

from __future__ import annotations

LIGHT = {
    "ground": "#ffffff",
    "raised": "#f4f6f8",
    "text": "#1c2126",
    "muted": "#505a64",
    "rule": "#c9d0d7",
    "link": "#134f96",
    "heat": "#134f96",
    "series-0": "#1f5fa8",
    "series-1": "#b3470f",
    "series-2": "#1a7a3c",
    "series-3": "#7a3fa0",
    "series-4": "#0b7285",
    "series-5": "#a61e4d",
}
DARK = {
    "ground": "#14171a",
    "raised": "#1e2328",
    "text": "#e6eaee",
    "muted": "#a9b4be",
    "rule": "#3c454e",
    "link": "#8fc1fa",
    "heat": "#8fc1fa",
    "series-0": "#7db4f5",
    "series-1": "#f2a365",
    "series-2": "#7ccf8f",
    "series-3": "#cf9df0",
    "series-4": "#66d0e0",
    "series-5": "#f58fb0",
}
SERIES = sum(name.startswith("series-") for name in LIGHT)


def luminance(colour: str) -> float:
    """Relative luminance of "#rrggbb" (WCAG 2.2, definition of relative luminance)."""
    channels = (int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5))
    red, green, blue = (value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in channels)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    """Contrast ratio from 1 to 21 (WCAG 2.2): text needs 4.5, a line or a bar 3."""
    darker, lighter = sorted((luminance(one), luminance(other)))
    return (lighter + 0.05) / (darker + 0.05)
