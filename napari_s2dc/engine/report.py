"""A report of figures and pictures as one HTML page, and its figures as text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from napari_s2dc.files import replace_atomically

__all__ = ["Figures", "Link", "Measurement", "Section", "Table", "as_text", "write_page"]

# System colours follow the reader's light or dark setting; pictures bring their own dark card.
_STYLE = """
:root { color-scheme: light dark; --line: color-mix(in srgb, CanvasText 18%, Canvas);
  --soft: color-mix(in srgb, CanvasText 68%, Canvas);
  --shade: color-mix(in srgb, CanvasText 5%, Canvas); }
body { font: 16px/1.6 system-ui, sans-serif; color: CanvasText; background: Canvas;
  max-width: 60rem; margin: 0 auto; padding: 2.5rem 1.25rem 5rem; }
h1 { font-size: 1.9rem; line-height: 1.25; margin: 0 0 .75rem; }
h2 { font-size: 1.3rem; margin: 3rem 0 .5rem; }
p { max-width: 46rem; margin: .5rem 0 1rem; }
p.soft, figcaption, td.note { color: var(--soft); font-size: .92rem; }
figure { margin: 1.25rem 0 1.75rem; }
img { display: block; width: 100%; height: auto; border-radius: 10px; background: #15181d; }
figcaption { margin-top: .5rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; margin: 1rem 0 1.25rem; }
th, td { text-align: left; vertical-align: top; padding: .45rem .9rem .45rem 0;
  border-bottom: 1px solid var(--line); }
th { font-weight: 600; }
td.number { font-variant-numeric: tabular-nums; white-space: nowrap; }
pre { background: var(--shade); padding: .9rem 1rem; border-radius: 8px; overflow-x: auto; }
code { font-family: ui-monospace, monospace; font-size: .9rem; }
li { margin: .3rem 0; }
"""


@dataclass(frozen=True)
class Measurement:
    """One line of the table of figures.

    Parameters
    ----------
    name : str
        What was measured.
    before, after : str
        The two values that are compared; ``before`` may be empty.
    meaning : str
        How to read it.
    """

    name: str
    before: str
    after: str
    meaning: str


@dataclass(frozen=True)
class Figures:
    """A table of measurements.

    Parameters
    ----------
    before, after : str
        What the two columns of values are of.
    rows : sequence of Measurement
        Its lines.
    """

    before: str
    after: str
    rows: Sequence[Measurement]


@dataclass(frozen=True)
class Link:
    """A file beside the page.

    Parameters
    ----------
    path : str
        Relative to the page.
    text : str
        What it is.
    """

    path: str
    text: str


@dataclass(frozen=True)
class Table:
    """Plain rows under a header.

    Parameters
    ----------
    header : sequence of str
        Names of the columns.
    rows : sequence of sequence of str
        Cells.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Section:
    """A heading with paragraphs, then whatever it shows, in this order.

    Parameters
    ----------
    title : str
        Heading.
    paragraphs : sequence of str
        What is seen and how to read it.
    figures : Figures, optional
        Measurements.
    table : Table, optional
        Rows.
    pictures : sequence of (path, caption)
        Paths relative to the page; the caption also describes the picture to those who cannot see.
    code : str
        Commands or code to copy.
    links : sequence of Link
        Files.
    """

    title: str
    paragraphs: Sequence[str]
    figures: Figures | None = None
    table: Table | None = None
    pictures: Sequence[tuple[str, str]] = ()
    code: str = ""
    links: Sequence[Link] = ()


def as_text(figures: Figures) -> str:
    """Measurements for the console, one line each."""
    rows = [
        ("", figures.before, figures.after),
        *((one.name, one.before, one.after) for one in figures.rows),
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    return "\n".join(
        f"  {name:<{widths[0]}}  {before:>{widths[1]}}  {after:>{widths[2]}}".rstrip()
        for name, before, after in rows
    )


def _table(header: Sequence[str], rows: Sequence[Sequence[str]], classes: Sequence[str]) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in header)
    body = "\n".join(
        "<tr>"
        + "".join(
            f'<td class="{kind}">{escape(cell)}</td>'
            for cell, kind in zip(row, classes, strict=True)
        )
        + "</tr>"
        for row in rows
    )
    return f'<div class="scroll"><table><tr>{head}</tr>\n{body}</table></div>'


def _figures(figures: Figures) -> str:
    return _table(
        ("", figures.before, figures.after, "how to read it"),
        [(one.name, one.before, one.after, one.meaning) for one in figures.rows],
        ("", "number", "number", "note"),
    )


def _section(section: Section) -> str:
    parts = [f"<h2>{escape(section.title)}</h2>"]
    parts += [f"<p>{escape(text)}</p>" for text in section.paragraphs]
    if section.figures is not None:
        parts.append(_figures(section.figures))
    if section.table is not None:
        header = section.table.header
        parts.append(_table(header, section.table.rows, [""] * len(header)))
    for path, caption in section.pictures:
        parts.append(
            f'<figure><a href="{escape(path)}"><img src="{escape(path)}" alt="{escape(caption)}">'
            f"</a><figcaption>{escape(caption)}</figcaption></figure>"
        )
    if section.code:
        parts.append(f"<pre><code>{escape(section.code)}</code></pre>")
    if section.links:
        parts.append("<ul>")
        parts += [
            f'<li><a href="{escape(link.path)}"><code>{escape(link.path)}</code></a>: '
            f"{escape(link.text)}</li>"
            for link in section.links
        ]
        parts.append("</ul>")
    return "\n".join(parts)


def write_page(
    path: Path,
    title: str,
    introduction: Sequence[str],
    figures: Figures,
    sections: Sequence[Section],
    footer: str,
) -> None:
    """Write a report that needs nothing but the files beside it.

    Parameters
    ----------
    path : Path
        HTML file to write.
    title : str
        Heading of the page.
    introduction : sequence of str
        Paragraphs above the figures.
    figures : Figures
        The table on top.
    sections : sequence of Section
        What follows.
    footer : str
        Last line.

    Raises
    ------
    S2DCError
        The file cannot be written.
    """
    page = "\n".join(
        [
            "<!doctype html>",
            '<html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body>",
            f"<h1>{escape(title)}</h1>",
            *(f"<p>{escape(text)}</p>" for text in introduction),
            "<h2>Figures</h2>",
            _figures(figures),
            *(_section(section) for section in sections),
            f'<p class="soft">{escape(footer)}</p>',
            "</body></html>",
            "",
        ]
    )
    with replace_atomically(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
