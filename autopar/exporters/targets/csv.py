"""CSV: the ranked plans as a table, one row each, every prediction with its range.

RFC 4180 with a header row; seconds, bytes, joules and dollars, no rounding.
"""

from __future__ import annotations

import csv
import io
import json
from typing import Any, ClassVar

from autopar.core.estimate import Estimate
from autopar.exporters.base import AbstractExport, Notes, Subject, read_price
from autopar.exporters.facts import facts
from autopar.exporters.writing import one_line
from autopar.plans import Plan

_ESTIMATES = {
    "step_time": "s",
    "peak_memory": "bytes",
    "energy": "joule",
    "cost": "usd",
}
_AXES = ("dp_replicate", "dp_shard", "cp", "tp", "pp", "ep")
_ALWAYS = ("zero", "schedule", "microbatches", "microbatch_size", "precision", "sync")


class Csv(AbstractExport):
    """Table of the plans of the file."""

    name: ClassVar[str] = "csv"
    written_for: ClassVar[str] = "RFC 4180"
    comment: ClassVar[str | None] = None
    rest: ClassVar[str] = "the table has no column for it"

    def body(self, subject: Subject, notes: Notes) -> str:
        """See :class:`AbstractExport`."""
        rows = [_row(rank, plan) for rank, plan in enumerate(subject.ranked)]
        columns = list(dict.fromkeys(key for row in rows for key in row))
        for key in facts(subject.plan):
            notes.keep(key, _column(key))
        stream = io.StringIO()
        writer = csv.DictWriter(stream, columns, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        return stream.getvalue()


def _column(key: str) -> str:
    return key.removeprefix("mesh.")


def _row(rank: int, plan: Plan) -> dict[str, Any]:
    """One plan; lists as JSON, what is not known empty."""
    row: dict[str, Any] = {"rank": rank, "name": plan.name, "hash": plan.hash}
    row |= _predictions(plan) if plan.predicted else {}
    row |= {"world_size": plan.world_size, "global_batch": plan.global_batch}
    row |= {axis: getattr(plan.mesh, axis) for axis in _AXES}
    row |= {key: getattr(plan, key) for key in _ALWAYS}
    row |= {_column(key): value for key, value in facts(plan).items()}
    return {key: _cell(value) for key, value in row.items()}


def _cell(value: Any) -> Any:
    if isinstance(value, str):
        return one_line(value)
    return json.dumps(value) if isinstance(value, list) else value


def _predictions(plan: Plan) -> dict[str, Any]:
    price = read_price(plan)
    row: dict[str, Any] = {}
    for what, unit in _ESTIMATES.items():
        estimate: Estimate | None = getattr(price, f"{what}_{unit}")
        if estimate is not None:
            row |= {
                f"{what}_{unit}": estimate.value,
                f"{what}_low_{unit}": estimate.low,
                f"{what}_high_{unit}": estimate.high,
                f"{what}_source": estimate.source,
            }
    row |= {"samples_per_s": price.samples_per_s, "mfu": price.mfu}
    row |= {f"breakdown_{key}": value for key, value in price.breakdown.to_dict().items()}
    return row
