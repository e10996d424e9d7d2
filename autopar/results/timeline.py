"""Timeline: what every rank did when; one type for simulated and measured steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

KINDS = (
    "forward",
    "backward",
    "backward_input",
    "backward_weight",
    "recompute",
    "wait",
    "sync",
    "optimizer",
)
"""``backward`` is both halves at once; schedules that split it have the other two."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One interval on one rank.

    Attributes:
        rank: Global rank (simulated timelines show the ranks of replica 0).
        kind: One of :data:`KINDS`; ``wait`` is blocked on a receive, ``sync`` on a collective.
        start_s: Seconds since the step began.
        end_s: Seconds since the step began.
        stage: Virtual stage, -1 when none.
        microbatch: Microbatch, -1 when none.
    """

    rank: int
    kind: str
    start_s: float
    end_s: float
    stage: int = -1
    microbatch: int = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeline:
    """Events of one step.

    Attributes:
        events: Sorted by start.
        source: ``simulated`` or ``measured``.
    """

    events: tuple[Event, ...]
    source: str

    @property
    def duration_s(self) -> float:
        """End of the last event."""
        return max((event.end_s for event in self.events), default=0.0)

    def to_dict(self) -> dict[str, Any]:
        """Columns, for compact files."""
        rows = [[e.rank, e.kind, e.start_s, e.end_s, e.stage, e.microbatch] for e in self.events]
        columns = ["rank", "kind", "start_s", "end_s", "stage", "microbatch"]
        return {"source": self.source, "columns": columns, "rows": rows}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Timeline:
        """Inverse of :meth:`to_dict`."""
        events = (
            Event(rank=r[0], kind=r[1], start_s=r[2], end_s=r[3], stage=r[4], microbatch=r[5])
            for r in data["rows"]
        )
        return cls(events=tuple(events), source=data["source"])
