"""Read a CSV of published measurements: text cells in, numbers or nothing out, no guessing."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from autopar.core.errors import InputError
from autopar.core.io import content_hash

REQUIRED = ("id", "model", "seq", "gpu", "gpus", "tp", "pp", "micro_batch", "global_batch")
"""Columns without which no row can be priced."""
MEASURED = ("metric_value", "step_time_s", "peak_mem_gib")
"""Columns that hold results; never read to make a prediction."""
MAX_CELL = 1_000_000


class UnpriceableError(Exception):
    """A row lacks something no table can supply; the message is the reason."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One line of the CSV.

    Attributes:
        cells: Column -> text, stripped; absent columns and empty cells are missing keys.
        line: Line number in the file, for messages.
    """

    cells: dict[str, str]
    line: int

    @property
    def id(self) -> str:
        """Row name, ``line N`` when the cell is empty."""
        return self.cells.get("id", f"line {self.line}")

    @property
    def family(self) -> str:
        """What stands before the number of the id: the source the row was read in."""
        return self.id.split("-")[0]

    def text(self, column: str) -> str:
        """A cell, empty when missing."""
        return self.cells.get(column, "")

    def number(self, column: str) -> float | None:
        """A finite number, ``None`` when the cell is empty or holds something else."""
        try:
            value = float(self.text(column).replace(",", ""))
        except ValueError:
            return None
        return value if math.isfinite(value) else None

    def positive(self, column: str) -> float | None:
        """A number above zero, else ``None``."""
        value = self.number(column)
        return value if value is not None and value > 0 else None

    def whole(self, column: str, default: int | None = None) -> int:
        """A whole number of at least 1; the default when the cell is empty.

        Raises:
            UnpriceableError: Less than 1, or empty without a default.
        """
        value = self.positive(column)
        if value is None:
            if default is None:
                raise UnpriceableError(f"no {column}")
            return default
        if value < 1:
            raise UnpriceableError(f"{column} is {value:g}, at least 1 is needed")
        return round(value)

    @property
    def fingerprint(self) -> str:
        """Hash of the configuration, not of the result or the id."""
        return content_hash(
            {k: v for k, v in self.cells.items() if k not in (*MEASURED, "id", "notes")}
        )


def read_entries(path: Path) -> list[Entry]:
    """All lines of a CSV.

    Raises:
        InputError: No such file, not a text table, a needed column is missing, or no rows.
    """
    try:
        with Path(path).open(newline="", encoding="utf-8-sig") as stream:
            entries = list(_entries(stream, path))
    except FileNotFoundError as error:
        raise InputError(f"no such file: {path}", hint="check the path") from error
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"cannot read {path} as CSV: {error}") from error
    if not entries:
        raise InputError(f"{path} holds no rows", hint="a header line and one row per run")
    return entries


def _entries(stream: Iterator[str], path: Path) -> Iterator[Entry]:
    csv.field_size_limit(MAX_CELL)
    reader = csv.reader(stream)
    header = [name.strip() for name in next(reader, [])]
    missing = [name for name in REQUIRED if name not in header]
    if missing:
        raise InputError(
            f"{path} lacks the columns {', '.join(missing)}",
            hint=f"needed: {', '.join(REQUIRED)}; the others are optional",
        )
    for line in reader:
        cells = {k: v.strip() for k, v in zip(header, line, strict=False) if k and v.strip()}
        if cells:
            yield Entry(cells=cells, line=reader.line_num)
