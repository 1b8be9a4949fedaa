"""One HTML page that needs nothing but itself: pictures inline, no scripts, light and dark, phone and desk."""

import base64
from collections.abc import Iterable, Sequence
from html import escape

import numpy as np

from pipeline.page.pictures import Picture, strip

STYLE = """
:root { color-scheme: light dark; --paper: #fbfaf7; --card: #fff; --ink: #1d1f23; --soft: #5d626b; --line: #dfddd6;
  --good: #1a7f4b; --bad: #b3402e; --c0: #1e4fa3; --c1: #d9640a; --c2: #0a9a86; --c3: #8c2d87;
  --c4: #b9749c; --c5: #6b6b1f; --heat: 30 79 163; }
@media (prefers-color-scheme: dark) { :root { --paper: #15171a; --card: #1d2024; --ink: #e7e6e2; --soft: #a2a7af;
  --line: #34383e; --good: #5fcf96; --bad: #f08a76; --c0: #6ea8ff; --c1: #ff9a4d; --c2: #52e0c4; --c3: #c77dd6;
  --c4: #ffe08a; --c5: #9aa0a8; --heat: 110 168 255; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 24px 16px 64px; max-width: 1280px; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 8px 0; }
h2 { font-size: 1.2rem; margin: 48px 0 12px; }
h3, figcaption { font-size: .95rem; font-weight: 600; margin: 0 0 10px; }
p { margin: 8px 0; max-width: 75ch; }
.soft, .note { color: var(--soft); font-size: .88rem; }
.verdict { font-size: 1.05rem; border-left: 4px solid var(--c0); padding-left: 12px; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 12px; margin: 20px 0; }
.tiles span { display: block; line-height: 1.35; }
.tiles div, .card { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 14px; }
.tiles b { display: block; font-size: 1.1rem; line-height: 1.4; white-space: nowrap; font-variant-numeric: tabular-nums; }
.tiles span { color: var(--soft); font-size: .82rem; }
.contents { display: flex; flex-wrap: wrap; gap: 2px 18px; font-size: .9rem; } a { color: var(--c0); }
.cards { columns: 2 420px; column-gap: 16px; } .cards.three { columns: 3 340px; }
.cards .card { break-inside: avoid; margin-bottom: 16px; }
figure { margin: 0; } .banner { display: block; max-width: 100%; height: auto; margin: 14px 0; }
.grid { display: grid; grid-template-columns: auto minmax(0, 1fr); gap: 3px 10px; align-items: center; }
.grid.bare { grid-template-columns: minmax(0, 1fr); }
.grid img { display: block; width: 100%; height: auto; }
.grid .row { text-align: right; }
.row, .columns { color: var(--soft); font-size: .78rem; white-space: nowrap; }
.columns { display: grid; grid-auto-flow: column; grid-auto-columns: minmax(0, 1fr); text-align: center; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .84rem; font-variant-numeric: tabular-nums; width: 100%; }
th, td { padding: 6px 8px; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0; background: var(--card); }
td small { display: block; color: var(--soft); white-space: normal; } .wide td small { white-space: nowrap; }
th { color: var(--soft); font-weight: 600; white-space: normal; vertical-align: bottom; }
table.text td { text-align: left; white-space: normal; overflow-wrap: anywhere; vertical-align: top; }
table.text td:first-child { color: var(--soft); white-space: nowrap; }
tr:last-child td { border-bottom: 0; }
.good { color: var(--good); font-weight: 600; } .bad { color: var(--bad); font-weight: 600; }
.heat th, .heat td { padding: 5px 2px; text-align: center; }
svg { display: block; width: 100%; max-width: 560px; height: auto; font-size: 14px; }
@media (max-width: 500px) { .columns { font-size: .66rem; } .heat { font-size: .7rem; } .grid { column-gap: 6px; }
  svg { font-size: 16px; } table { font-size: .76rem; } th, td { padding: 6px 3px; } th { font-size: .72rem; }
  .wide td:first-child { white-space: normal; min-width: 7em; } }
svg text { fill: var(--soft); } svg path { fill: none; }
svg .grid { stroke: var(--line); } svg .axis { stroke: var(--soft); }
svg .line { stroke-width: 2; } svg .level { stroke: var(--soft); stroke-dasharray: 1 3; stroke-width: 1.5; }
svg path.c0 { stroke: var(--c0); } svg path.c1 { stroke: var(--c1); stroke-dasharray: 9 4; }
svg path.c2 { stroke: var(--c2); stroke-dasharray: 3 3; } svg path.c3 { stroke: var(--c3); stroke-dasharray: 12 3 3 3; }
svg path.c4 { stroke: var(--c4); stroke-dasharray: 6 2; } svg path.c5 { stroke: var(--c5); stroke-dasharray: 16 5; }
svg circle.c0 { fill: var(--c0); } svg circle.c1 { fill: var(--c1); } svg circle.c2 { fill: var(--c2); }
svg circle.c3 { fill: var(--c3); } svg circle.c4 { fill: var(--c4); } svg circle.c5 { fill: var(--c5); }
svg .ring { fill: none; stroke: var(--ink); stroke-width: 2; }
"""


def page(title: str, body: Iterable[str]) -> str:
    """A whole document."""
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{escape(title)}</title>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n<link rel="icon" href="data:,">\n'
        f"<style>{STYLE}</style>\n</head>\n<body>\n" + "\n".join(body) + "\n</body>\n</html>\n"
    )


def contents(names: Iterable[str]) -> str:
    """Links to the headings of these names."""
    links = "".join(f'<a href="#{_anchor(name)}">{escape(name)}</a>' for name in names)
    return f'<nav class="contents">{links}</nav>'


def heading(name: str) -> str:
    return f'<h2 id="{_anchor(name)}">{escape(name)}</h2>'


def _anchor(name: str) -> str:
    return escape(name.lower().replace(" ", "-"), quote=True)


def cards(*parts: str, kind: str = "") -> str:
    """Parts side by side where there is room, two or (kind "three") three."""
    return f'<div class="cards {kind}">' + "".join(f'<div class="card">{part}</div>' for part in parts) + "</div>"


def titled(title: str, part: str, note: str = "") -> str:
    return f"<h3>{escape(title)}</h3>{part}" + (f'<p class="note">{escape(note)}</p>' if note else "")


def tiles(figures: Iterable[tuple[str, str]]) -> str:
    """A few figures in large type, each with what it is."""
    return (
        '<div class="tiles">'
        + "".join(f"<div><b>{escape(value)}</b><span>{escape(name)}</span></div>" for name, value in figures)
        + "</div>"
    )


def table(header: Sequence[str], rows: Iterable[Sequence[str]], kind: str = "") -> str:
    """A table; a cell "✓ …" or "✗ …" is coloured, what stands in a second line of a cell is small; text is escaped."""
    marks = {"✓": ' class="good"', "✗": ' class="bad"'}
    head = "".join(f"<th>{escape(name)}</th>" for name in header)
    lines = ("".join(f"<td{marks.get(cell[:1], '')}>{_two_lines(cell)}</td>" for cell in row) for row in rows)
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return (
        f'<div class="scroll"><table class="{kind}">' + (f"<tr>{head}</tr>" if header else "") + f"{body}</table></div>"
    )


def _two_lines(cell: str) -> str:
    first, _, second = map(escape, cell.partition("\n"))
    return first + (f"<small>{second}</small>" if second else "")


def heat_table(corner: str, names: Sequence[str], counts: Sequence[Sequence[int]]) -> str:
    """A square table of counts; off its diagonal, the more the darker."""
    most = max([n for i, row in enumerate(counts) for j, n in enumerate(row) if i != j] + [1])
    lines = []
    for i, row in enumerate(counts):
        cells = (
            f'<td style="background: rgb(var(--heat) / {0 if i == j else 0.6 * n / most:.2f})">{n or ""}</td>'
            for j, n in enumerate(row)
        )
        lines.append(f"<tr><td>{escape(names[i])}</td>{''.join(cells)}</tr>")
    head = "".join(f"<th>{escape(name)}</th>" for name in (corner, *names))
    return f'<div class="scroll"><table class="heat"><tr>{head}</tr>{"".join(lines)}</table></div>'


def inline(images: np.ndarray, zoom: int, said: str, kind: str = "") -> str:
    """Images (K, C, H, W) side by side in one PNG, and what they are in words."""
    data = base64.b64encode(strip(images, zoom)).decode()
    return f'<img class="{kind}" alt="{escape(said, quote=True)}" src="data:image/png;base64,{data}">'


def figure(picture: Picture, zoom: int) -> str:
    """A picture, a row one inline PNG; captions are text."""
    parts = []
    if picture.columns:
        names = "".join(f"<span>{escape(name)}</span>" for name in picture.columns)
        parts += ["<span></span>"] * bool(picture.rows) + [f'<div class="columns">{names}</div>']
    for i, row in enumerate(picture.images):
        if picture.rows:
            parts.append(f'<span class="row">{escape(picture.rows[i])}</span>')
        parts.append(inline(row, zoom, f"{picture.title}: {picture.rows[i] if picture.rows else f'row {i + 1}'}"))
    kind = "grid" if picture.rows else "grid bare"
    return (
        f'<figure><figcaption>{escape(picture.title)}</figcaption><div class="{kind}">{"".join(parts)}</div></figure>'
    )
