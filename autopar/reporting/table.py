"""A table as a value: the twin of every chart and the source of Markdown, JSON and CSV."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from autopar.reporting.text import display

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
        row_kinds: How the ``number`` cells of each row are shown, when rows differ in unit.
    """

    id: str
    caption: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Value, ...], ...]
    searchable: bool = False
    omitted: int = 0
    row_kinds: tuple[Kind, ...] = ()

    def cells(self) -> list[list[Cell]]:
        """The rows for the page."""
        plain: Kind = "number"
        kinds = self.row_kinds or (plain,) * len(self.rows)
        return [
            [_cell(column, value, kind) for column, value in zip(self.columns, row, strict=True)]
            for row, kind in zip(self.rows, kinds, strict=True)
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


def _cell(column: Column, value: Value, number_kind: Kind) -> Cell:
    numeric = column.kind != "text"
    kind = number_kind if column.kind == "number" else column.kind
    sort = "" if value is None else repr(value) if isinstance(value, float | int) else str(value)
    return Cell(text=display(kind, value), sort=sort, numeric=numeric)
