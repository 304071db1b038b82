"""Pieces of a self-contained HTML page: style, tables, the frame. Not here: what a page says, plots."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from typing import Final

STYLE: Final = """
body { font: 15px/1.45 system-ui, sans-serif; color: #222 }
body { max-width: 62rem; margin: 2rem auto; padding: 0 1rem }
table { border-collapse: collapse; margin: 1rem 0 }
td, th { padding: .2rem .8rem; border-bottom: 1px solid #ddd }
th { text-align: left } td.n { text-align: right; font-variant-numeric: tabular-nums }
.reached { color: #176b2c } .missed { color: #a3231f } svg { max-width: 100%; height: auto }
"""


def cells(values: Iterable[object], tag: str = "td") -> str:
    """A row of a table; figures are set to the right."""

    def cell(value: object) -> str:
        if isinstance(value, float):
            return f'<{tag} class="n">{value:,.2f}</{tag}>'
        return f"<{tag}>{html.escape(str(value))}</{tag}>"

    return "<tr>" + "".join(map(cell, values)) + "</tr>"


def table(headings: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table with a heading."""
    return f"<table>{cells(headings, 'th')}{''.join(cells(row) for row in rows)}</table>"


def document(title: str, parts: Iterable[str]) -> str:
    """The whole page; it refers to nothing outside."""
    head = f"<meta charset='utf-8'><title>{html.escape(title)}</title><style>{STYLE}</style>"
    return f"<!doctype html><html lang='en'><head>{head}</head><body>{''.join(parts)}</body></html>\n"
