"""A table as a value: the twin of every chart and the source of Markdown, JSON and CSV."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from autopar.report.text import display

Kind = Literal[
    "text",
    "count",
    "number",
    "bytes",
    "seconds",
    "flop",
    "flop_rate",
    "rate",
    "ratio",
    "signed_ratio",
    "signed_seconds",
]
Value = str | float | int | None


@dataclass(frozen=True, slots=True)
class Column:
    """One column.

    Attributes:
        key: Name in JSON and CSV, unit included (``step_time_s``).
        label: Heading for people.
        kind: How cells are shown; raw values are SI.
    """

    key: str
    label: str
    kind: Kind = "text"


@dataclass(frozen=True, slots=True)
class Cell:
    """A cell ready for the page: the shown text and the value to sort by."""

    text: str
    sort: str
    numeric: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Rows under columns.

    Attributes:
        id: Name in JSON, anchor in the page.
        caption: What the rows are.
        columns: Headings.
        rows: Raw values in SI units.
        searchable: Offer a search box (long tables).
        omitted: Rows left out of the page, said below the table.
    """

    id: str
    caption: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Value, ...], ...]
    searchable: bool = False
    omitted: int = 0

    def cells(self) -> list[list[Cell]]:
        """The rows for the page."""
        return [
            [_cell(column, value) for column, value in zip(self.columns, row, strict=True)]
            for row in self.rows
        ]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values: columns and rows by key."""
        keys = [column.key for column in self.columns]
        return {
            "caption": self.caption,
            "columns": keys,
            "rows": [dict(zip(keys, row, strict=True)) for row in self.rows],
            "omitted": self.omitted,
        }


def _cell(column: Column, value: Value) -> Cell:
    numeric = column.kind != "text"
    sort = "" if value is None else repr(value) if isinstance(value, float | int) else str(value)
    return Cell(text=display(column.kind, value), sort=sort, numeric=numeric)
