"""Columns of the parity matrix: strategies, schedules, compositions and precisions."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

SAMPLES = 4
"""Samples of a microbatch, the mean over replicas."""
CLIP_NORM = 0.1


@dataclass(frozen=True, kw_only=True)
class Case:
    """One column of the matrix.

    Attributes:
        name: Its heading.
        mesh: Degrees.
        microbatches: Per replica.
        changes: Other fields of the plan.
        recompute: ``full``, ``selective`` or ``mixed`` (none, selective and full in turn) over
            parts of the model.
        offered: False for what is chosen after the search: shares of unlike machines.
    """

    name: str
    mesh: dict[str, int]
    microbatches: int = 1
    changes: dict[str, Any] = field(default_factory=dict)
    recompute: str = "none"
    offered: bool = True


def _pp(schedule: str) -> Case:
    return Case(
        name=f"pp2·{schedule}", mesh={"pp": 2}, microbatches=4, changes={"schedule": schedule}
    )


def _composed(name: str, *, zero: int = 0, **mesh: int) -> Case:
    changes: dict[str, Any] = {"clip_norm": CLIP_NORM}
    if zero:
        changes["zero"] = zero
    if "pp" in mesh:
        changes["schedule"] = "1f1b"
    return Case(name=name, mesh=mesh, microbatches=4 if "pp" in mesh else 1, changes=changes)


DATA = (
    Case(name="dp2", mesh={"dp_replicate": 2}),
    Case(
        name="uneven 3+5",
        mesh={"dp_replicate": 2},
        changes={"batch_shares": (3, 5)},
        offered=False,
    ),
    Case(name="ps_sync", mesh={"dp_replicate": 2}, changes={"sync": "ps_sync"}),
    *(
        Case(name=f"zero{level}", mesh={"dp_shard": 2}, changes={"zero": level})
        for level in (1, 2, 3)
    ),
    *(
        Case(name=name, mesh={"dp_replicate": 2}, recompute=name)
        for name in ("full", "selective", "mixed")
    ),
    Case(name="tp2", mesh={"tp": 2}),
    Case(name="tp2 sp", mesh={"tp": 2}, changes={"sequence_parallel": True}),
    Case(name="cp2", mesh={"cp": 2}),
    Case(name="ep2", mesh={"dp_replicate": 2, "ep": 2}),
)
"""Every axis but the pipeline, on two ranks."""
SCHEDULED = tuple(
    map(
        _pp,
        (
            "gpipe",
            "1f1b",
            "interleaved",
            "looped_bfs",
            "zero_bubble",
            "interleaved_zb",
            "zbv",
            "dualpipev",
        ),
    )
)
"""Every schedule, on two ranks."""
COMPOSED = (
    _composed("dp2·tp2", dp_replicate=2, tp=2),
    _composed("dp2·pp2", dp_replicate=2, pp=2),
    _composed("tp2·pp2", tp=2, pp=2),
    _composed("fsdp2·pp2", dp_shard=2, pp=2, zero=3),
    _composed("fsdp2·tp2", dp_shard=2, tp=2, zero=3),
    _composed("hsdp 2·2", dp_replicate=2, dp_shard=2, zero=3),
    _composed("dp2·cp2", dp_replicate=2, cp=2),
    _composed("cp2·pp2", cp=2, pp=2),
    _composed("fsdp2·cp2", dp_shard=2, cp=2, zero=3),
    _composed("dp2·ep2", dp_replicate=4, ep=2),
    _composed("ep2·pp2", dp_replicate=2, ep=2, pp=2),
    _composed("fsdp2·ep2", dp_replicate=2, dp_shard=2, ep=2, zero=3),
)
"""On four ranks, with clipping."""
EIGHT = (_composed("dp2·tp2·pp2", dp_replicate=2, tp=2, pp=2),)
"""On eight ranks."""


def _in(precision: str) -> tuple[Case, ...]:
    names = ("dp2", "zero3", "pp2·1f1b", "tp2", "fsdp2·tp2", "dp2·pp2")
    known = {case.name: case for case in (*DATA, *SCHEDULED, *COMPOSED)}
    return tuple(
        replace(known[name], changes={**known[name].changes, "precision": precision})
        for name in names
    )


BFLOAT16, FLOAT16 = _in("bfloat16"), _in("float16")
"""The basic cases in each narrow format."""
