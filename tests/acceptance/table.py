"""What each request got, collected while the tests run and shown at their end."""

from __future__ import annotations

from collections.abc import Iterator

_tables: dict[str, list[tuple[str, ...]]] = {}


def begin(title: str, *columns: str) -> None:
    """A table with these columns; beginning it again keeps its rows."""
    _tables.setdefault(title, [columns])


def add(title: str, *cells: object) -> None:
    """A row of a table that was begun."""
    _tables[title].append(tuple(str(cell).replace("|", "/").replace("\n", " ") for cell in cells))


def rendered() -> Iterator[tuple[str, list[str]]]:
    """Each table's title and its lines, in Markdown."""
    for title, (columns, *rows) in _tables.items():
        yield title, [_line(columns), _line(("---",) * len(columns)), *map(_line, rows)]


def _line(cells: tuple[str, ...]) -> str:
    return f"| {' | '.join(cells)} |"
