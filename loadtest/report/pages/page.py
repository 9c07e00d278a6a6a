"""The page around tables and pictures: self-contained HTML, readable on a telephone (390 pixels) and on a wide screen."""

from base64 import b64encode
from collections.abc import Iterable
from html import escape

from loadtest.report.pages.drawing import Drawing
from loadtest.report.rows import Section

STYLE = """
:root { --ink: #1c2430; --soft: #5b6675; --line: #dfe3e8; --ground: #f6f7f9; }
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--ink); font: 15px/1.45 system-ui, "Segoe UI", "DejaVu Sans", sans-serif; }
main { max-width: 1240px; margin: 0 auto; padding: 20px 20px 48px; }
h1 { font-size: 26px; margin: 4px 0; overflow-wrap: anywhere; }
h2 { font-size: 18px; margin: 0 0 8px; }
p { margin: 4px 0; } .soft, figcaption { color: var(--soft); }
section, figure, .tile { background: #fff; border: 1px solid var(--line); border-radius: 8px; }
section, figure { padding: 14px 18px; margin: 16px 0 0; overflow-x: auto; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(136px, 1fr)); gap: 12px; margin-top: 16px; }
.tile { padding: 10px 14px; }
.tile b { display: block; font-size: 21px; font-variant-numeric: tabular-nums; white-space: nowrap; }
.tile span { color: var(--soft); font-size: 13px; }
.bad { border: 2px solid #c0392b; background: #fdecea; border-radius: 8px; padding: 10px 16px; margin-top: 16px; }
.side { columns: 3 300px; column-gap: 16px; margin-top: 16px; }
.side section { break-inside: avoid; margin: 0 0 16px; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th { text-align: left; color: var(--soft); font-weight: 600; font-size: 13px; border-bottom: 2px solid var(--line); }
td { border-bottom: 1px solid var(--line); } tr:last-child td { border-bottom: 0; }
th, td { padding: 4px 0 4px 16px; vertical-align: top; } th:first-child, td:first-child { padding-left: 0; }
td.text { overflow-wrap: anywhere; min-width: 72px; }
td.text:first-child { min-width: 104px; } .figure { text-align: right; white-space: nowrap; }
td.good { color: #1e7d4f; font-weight: 600; } td.worse { color: #c0392b; font-weight: 600; }
.panels { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 420px), 1fr)); gap: 12px; margin-top: 8px; }
img { width: 100%; height: auto; display: block; }
@media (max-width: 600px) {
  main { padding: 10px 8px 32px; } section, figure { padding: 10px; } h1 { font-size: 21px; }
  .tiles { grid-template-columns: 1fr 1fr; gap: 8px; } .tile b { font-size: 18px; } th, td { padding-left: 10px; }
}
pre { white-space: pre-wrap; overflow-wrap: anywhere; margin: 0; font-size: 13px; }
"""


def page(title: str, parts: Iterable[str]) -> str:
    """A whole page with `parts` as its body; the parts are HTML, `title` is plain text."""
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{escape(title)}</title>\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<style>{STYLE}</style>\n</head>\n'
        f"<body>\n<main>\n{chr(10).join(parts)}\n</main>\n</body>\n</html>\n"
    )


def table(section: Section, marks: dict[str, str] | None = None) -> str:
    """A section as HTML; a cell whose text is a key of `marks` gets its value as class."""
    kinds = ["figure" if section.figures(place) else "text" for place in range(len(section.header))]
    head = "".join(f'<th class="{kind}">{escape(name)}</th>' for kind, name in zip(kinds, section.header, strict=True))
    lines = []
    for row in section.rows:
        classes = [f"{kind} {(marks or {}).get(cell, '')}".strip() for kind, cell in zip(kinds, row, strict=True)]
        lines.append(
            "".join(f'<td class="{name}">{escape(cell)}</td>' for name, cell in zip(classes, row, strict=True))
        )
    body = "\n".join(f"<tr>{line}</tr>" for line in lines)
    inside = f"<thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody>"
    return f"<section><h2>{escape(section.title)}</h2><table>{inside}</table></section>"


def picture(title: str, caption: str, drawings: Iterable[Drawing]) -> str:
    """Panels as PNG, embedded in the page: beside each other where there is room."""
    images = "".join(
        f'<img alt="{escape(each.title)}" src="data:image/png;base64,{b64encode(each.png).decode()}">'
        for each in drawings
    )
    heading = f"<h2>{escape(title)}</h2><figcaption>{escape(caption)}</figcaption>"
    return f'<figure>{heading}<div class="panels">{images}</div></figure>'


def tiles(entries: Iterable[tuple[str, str]]) -> str:
    """Key figures, from pairs of name and value."""
    cells = (f'<div class="tile"><b>{escape(value)}</b><span>{escape(name)}</span></div>' for name, value in entries)
    return f'<div class="tiles">{"".join(cells)}</div>'


def side_by_side(parts: Iterable[str]) -> str:
    """Narrow sections beside each other."""
    return f'<div class="side">{"".join(parts)}</div>'


def warning(title: str, lines: Iterable[str]) -> str:
    """A box with what the reader must know before anything else."""
    items = "".join(f"<p>{escape(line)}</p>" for line in lines)
    return f'<div class="bad"><b>{escape(title)}</b>{items}</div>'


def text(title: str, content: str) -> str:
    """A section of preformatted text."""
    return f"<section><h2>{escape(title)}</h2><pre>{escape(content)}</pre></section>"
