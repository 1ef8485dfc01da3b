"""The pieces that the report's page is put together from: cards, tables, lists of names.

Whatever is passed as a cell or a head is HTML already; names and figures from outside are escaped
by whoever passes them, but for `card`, `pairs` and `listed`, which escape.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from html import escape
from typing import Any

_TEXT_COLUMNS = frozenset({"tenant", "source of", "data sets"})


def card(figure: str, text: str, *, good: bool | None = None) -> str:
    """A figure in large, and what it is."""
    mood = "" if good is None else " good" if good else " bad"
    return f'<div class="card{mood}"><b>{escape(figure)}</b><span>{escape(text)}</span></div>'


def pairs(values: Mapping[str, Any]) -> str:
    """A table of names and values."""
    rows = "".join(
        f"<tr><td>{escape(name.replace('_', ' '))}</td>{cell(escape(short(value)), 'text')}</tr>"
        for name, value in values.items()
    )
    return f'<table class="pairs">{rows}</table>'


def short(value: object) -> str:
    """A value in a word or two."""
    match value:
        case dict():
            return ", ".join(f"{name} {short(item)}" for name, item in value.items())
        case list() | tuple():
            return ", ".join(map(short, value))
        case float():
            return f"{value:g}"
        case _:
            return str(value)


def heads(*names: str) -> str:
    """The row of a table's column names."""
    cells = (
        f'<th class="text">{name}</th>' if name in _TEXT_COLUMNS else f"<th>{name}</th>"
        for name in names
    )
    return f"<tr>{''.join(cells)}</tr>"


def cell(text: str, kind: str = "") -> str:
    """One cell of a table."""
    return f'<td class="{kind}">{text}</td>' if kind else f"<td>{text}</td>"


def listed(names: Iterable[str]) -> str:
    """Names, with commas between them."""
    return escape(", ".join(names))
