"""The page's style sheet."""

from __future__ import annotations

from sparsekern.report.colours import DARK, LIGHT, SERIES


def variables(colours: dict[str, str]) -> str:
    return " ".join(f"--{name}: {colour};" for name, colour in colours.items())


def style_sheet() -> str:
    series = "\n".join(f".s{index} {{ --own: var(--series-{index}); }}" for index in range(SERIES))
    return f"""
:root {{ color-scheme: light dark; {variables(LIGHT)} }}
@media screen and (prefers-color-scheme: dark) {{ :root {{ {variables(DARK)} }} }}
{series}
{RULES}"""


RULES = """
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0; background: var(--ground); color: var(--text); font: 16px/1.5 system-ui, sans-serif; }
header, main, footer { max-width: 76rem; margin: 0 auto; padding: 0 1rem; }
h1, h2, h3 { line-height: 1.25; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; margin: 1.5rem 0 0.5rem; }
h2 { font-size: 1.25rem; margin: 2.5rem 0 0.75rem; padding-top: 0.75rem; border-top: 1px solid var(--rule); }
h3 { font-size: 1.05rem; margin: 1.5rem 0 0.5rem; }
p, li { max-width: 72ch; overflow-wrap: anywhere; }
a { color: var(--link); }
.skip { position: absolute; left: -100rem; background: var(--ground); padding: 0.5rem 1rem; z-index: 2; }
.skip:focus { left: 0.5rem; top: 0.5rem; }
:focus-visible { outline: 3px solid var(--link); outline-offset: 2px; }
nav ul { display: flex; flex-wrap: wrap; gap: 0.25rem 1.25rem; list-style: none; margin: 0.75rem 0; padding: 0; }
nav a { display: inline-block; padding: 0.25rem 0; }
.note { color: var(--muted); }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 21rem), 1fr)); gap: 1.25rem; }
figure { margin: 0; min-width: 0; }
figcaption { font-weight: 600; overflow-wrap: anywhere; }
figcaption span { font-weight: 400; color: var(--muted); }
svg.chart { display: block; width: 100%; height: auto; max-width: 34rem; }
svg text { fill: var(--text); font: 11px system-ui, sans-serif; }
svg text.end { text-anchor: end; }
svg text.middle { text-anchor: middle; }
svg .rule { stroke: var(--rule); stroke-width: 1; }
svg .line { fill: none; stroke: var(--own); stroke-width: 1.8; stroke-linejoin: round; }
svg .band { fill: var(--own); opacity: 0.18; }
svg .mark { fill: var(--ground); stroke: var(--own); stroke-width: 1.5; }
svg .bar { fill: var(--own); }
svg .hollow { fill: var(--ground); stroke: var(--own); stroke-width: 1.5; }
svg .cell { fill: var(--heat); }
svg .missing { fill: none; stroke: var(--rule); stroke-dasharray: 2 2; }
ul.legend { display: flex; flex-wrap: wrap; gap: 0.1rem 1rem; list-style: none; margin: 0.25rem 0; padding: 0; }
ul.legend li { font-size: 0.85rem; overflow-wrap: anywhere; }
ul.legend svg { width: 34px; height: 12px; vertical-align: middle; margin-right: 0.35rem; }
details { margin: 0.35rem 0; min-width: 0; }
summary { cursor: pointer; padding: 0.25rem 0; overflow-wrap: anywhere; }
figure summary { font-size: 0.85rem; color: var(--muted); }
details.run > summary { font-weight: 600; font-size: 1.05rem; }
.scroll { overflow-x: auto; max-width: 100%; margin: 0.5rem 0; }
figure .scroll { max-height: 20rem; overflow-y: auto; }
table { border-collapse: collapse; font-size: 0.875rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; color: var(--muted); padding: 0.25rem 0; }
th, td { padding: 0.25rem 0.6rem; border-bottom: 1px solid var(--rule); vertical-align: top; }
td { text-align: right; white-space: nowrap; }
thead th { text-align: right; vertical-align: bottom; min-width: 4.5rem; }
th:first-child { text-align: left; }
tbody th { font-weight: 400; text-align: left; min-width: 7rem; }
thead th { background: var(--raised); font-weight: 600; }
table.words td, table.words thead th { text-align: left; white-space: normal; min-width: 7rem; }
table.words td { overflow-wrap: anywhere; }
.meter { display: block; height: 5px; min-width: 4rem; background: var(--rule); border-radius: 2px; margin-top: 2px; }
.meter i { display: block; height: 100%; background: var(--series-0); border-radius: 2px; }
footer { margin-top: 3rem; padding-bottom: 2rem; color: var(--muted); font-size: 0.875rem; }
@media print { details::details-content { content-visibility: visible; block-size: auto; } }
"""
