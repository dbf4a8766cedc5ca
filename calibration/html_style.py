"""The style sheet of HTML reports."""

__all__ = ["STYLE"]

STYLE = """
:root {
  color-scheme: light dark;
  --paper: #ffffff; --ink: #1b1d21; --soft: #555b66; --rule: #d9dce1; --wash: #f5f6f8;
  --bar: #8b99ad; --bad: #b3261e; --bad-wash: #fbeceb; --good: #1d6b3a; --good-wash: #eaf5ee;
  --open: #7a5200; --open-wash: #fbf3e0; --link: #1f4fa3; --heat: 179, 38, 30;
  --sans: system-ui, -apple-system, "Segoe UI", "Helvetica Neue", Arial, sans-serif;
  --mono: ui-monospace, "SF Mono", "Cascadia Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #15171b; --ink: #e7e9ed; --soft: #a4abb8; --rule: #343942; --wash: #1d2026;
    --bar: #64748c; --bad: #ff8a80; --bad-wash: #33191a; --good: #7fd19b; --good-wash: #14291c;
    --open: #f0c060; --open-wash: #2d2513; --link: #93b8ff; --heat: 255, 110, 100;
  }
}
* { box-sizing: border-box; }
html { font-size: 16px; -webkit-text-size-adjust: 100%; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 1rem/1.55 var(--sans); }
main { max-width: 66rem; margin: 0 auto; padding: 2.5rem 2rem 4rem; }
h1, h2, h3 { line-height: 1.25; font-weight: 650; letter-spacing: -0.01em; margin: 0; }
h1 { font-size: 2.1rem; }
h2 { font-size: 1.35rem; padding-top: 2.2rem; margin-bottom: 0.9rem; }
h3 { font-size: 1rem; margin: 1.9rem 0 0.6rem; }
section.scanner > h2 { border-top: 1px solid var(--rule); margin-top: 2.6rem; }
p { margin: 0.5rem 0; max-width: 46rem; }
ul { margin: 0.5rem 0; padding-left: 1.15rem; max-width: 46rem; }
li { margin: 0.3rem 0; }
a { color: var(--link); text-underline-offset: 0.15em; }
.eyebrow { color: var(--soft); font-size: 0.85rem; margin: 0 0 1.1rem; }
code, .mono { font-family: var(--mono); font-size: 0.86em; overflow-wrap: anywhere; }
.verdict { border-left: 6px solid; padding: 1.3rem 1.6rem 1.2rem; }
.verdict .mono { font-size: 0.9rem; }
.verdict ul { margin-top: 0.8rem; }
.verdict li, .verdict p { color: var(--ink); }
.backdoored, .bad { border-color: var(--bad); background: var(--bad-wash); }
.clean, .good { border-color: var(--good); background: var(--good-wash); }
.inconclusive, .open { border-color: var(--open); background: var(--open-wash); }
.backdoored h1, .bad h1, .word.backdoored { color: var(--bad); }
.clean h1, .good h1, .word.clean { color: var(--good); }
.inconclusive h1, .open h1, .word.inconclusive { color: var(--open); }
.word { background: none; font-weight: 650; }
dl { display: grid; grid-template-columns: 10rem minmax(0, 1fr); gap: 0.3rem 1.25rem; margin: 0; }
dt { color: var(--soft); }
dd { margin: 0; overflow-wrap: anywhere; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: 0.9rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; color: var(--soft); font-size: 0.85rem; padding: 0 0 0.5rem; max-width: 46rem; }
th, td { text-align: left; padding: 0.32rem 0.75rem 0.32rem 0; border-bottom: 1px solid var(--rule);
  vertical-align: top; font-weight: 400; }
thead th { color: var(--soft); font-size: 0.82rem; border-bottom-color: var(--soft); white-space: nowrap; }
.num { text-align: right; white-space: nowrap; }
th.num:last-child, td.num:last-child { padding-right: 0; }
.heat td.num:last-child { padding-right: 0.6rem; }
tr.hit > * { font-weight: 650; color: var(--bad); }
.heat th, .heat td { padding: 0.32rem 0.6rem; border: 1px solid var(--rule); white-space: nowrap; }
.heat thead th { white-space: normal; vertical-align: bottom; }
.heat td.hit { font-weight: 700; outline: 2px solid var(--bad); outline-offset: -2px; }
figure { margin: 0; }
figcaption { color: var(--soft); font-size: 0.85rem; }
.chart { overflow-x: auto; margin: 0.4rem 0 1rem; }
.chart svg { display: block; width: 100%; min-width: 44rem; height: auto; }
.chart figcaption { margin: 0.1rem 0 1.2rem; }
svg text { font-family: var(--sans); font-size: 13px; fill: var(--ink); font-variant-numeric: tabular-nums; }
svg text.head, svg text.note { fill: var(--soft); font-size: 12px; }
svg .end { text-anchor: end; }
svg .middle { text-anchor: middle; }
svg text.flagged { fill: var(--bad); font-weight: 650; }
svg rect.plain { fill: var(--bar); }
svg rect.flagged, svg .mark { fill: var(--bad); }
svg rect.risen { fill: var(--good); }
svg .curve { fill: none; stroke: var(--link); stroke-width: 2; stroke-linejoin: round; }
svg .point { fill: var(--link); }
svg .area { fill: var(--bar); }
svg .flag { stroke: var(--bad); stroke-width: 3; }
svg text.value { paint-order: stroke; stroke: var(--paper); stroke-width: 4px; stroke-linejoin: round; }
svg .leader { stroke: var(--bad); fill: none; stroke-width: 0.8; }
svg .axis { stroke: var(--soft); }
svg .grid { stroke: var(--rule); }
svg .median { stroke: var(--ink); stroke-width: 1; stroke-dasharray: 4 4; opacity: 0.75; }
.trigger { margin: 1rem 0 1.8rem; }
.trigger > p { margin: 0 0 0.6rem; max-width: none; }
.strips { display: grid; gap: 0.5rem; max-width: 46rem; }
.strips figure { display: grid; grid-template-columns: 7.5rem minmax(0, 1fr); gap: 1rem;
  align-items: center; }
.strips figcaption { order: -1; text-align: right; }
.strips img { display: block; width: 100%; height: auto; image-rendering: pixelated; }
.rows { font-family: var(--mono); font-size: 0.86rem; overflow-wrap: anywhere; }
footer { margin-top: 3rem; padding-top: 1rem; border-top: 1px solid var(--rule); color: var(--soft);
  font-size: 0.85rem; }
@media (max-width: 40rem) {
  main { padding: 1.2rem 1rem 3rem; }
  dl { grid-template-columns: 1fr; gap: 0; }
  dd { margin-bottom: 0.6rem; }
  .strips figure { grid-template-columns: 1fr; gap: 0.2rem; }
  .strips figcaption { text-align: left; }
}
@media print {
  :root {
    color-scheme: light;
    --paper: #ffffff; --ink: #000000; --soft: #444444; --rule: #bbbbbb; --wash: #f5f6f8;
    --bar: #8b99ad; --bad: #a01d16; --bad-wash: #fbeceb; --good: #1d6b3a; --good-wash: #eaf5ee;
    --open: #6b4800; --open-wash: #fbf3e0; --link: #000000; --heat: 179, 38, 30;
  }
  html { font-size: 11px; }
  main { max-width: none; padding: 0; }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
  h2, h3 { break-after: avoid; }
  tr, .trigger, .verdict { break-inside: avoid; }
  thead { display: table-header-group; }
  .wide, .chart { overflow: visible; }
  .chart svg { min-width: 0; }
}
"""
"""Colours keep a contrast of 4.5 to 1 for text, on light paper and on dark."""
