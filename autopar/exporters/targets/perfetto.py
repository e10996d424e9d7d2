"""Perfetto: the predicted step as a trace that ui.perfetto.dev and chrome://tracing open.

Trace Event Format, JSON object form (complete events ``X``, metadata ``M``, flow events ``s`` and
``f``; times in microseconds), as the Perfetto documentation describes it in 2026.
"""

from __future__ import annotations

import json
from typing import Any, ClassVar

from autopar.core.version import __version__
from autopar.cost.simulation.replay import simulate_plan
from autopar.exporters.base import AbstractExport, Notes, Subject
from autopar.exporters.facts import facts
from autopar.plans import Plan
from autopar.results import Event

_US_PER_S = 1e6
_PROCESS = 1


class Perfetto(AbstractExport):
    """Timeline of one step, one track a rank of replica 0."""

    name: ClassVar[str] = "perfetto"
    written_for: ClassVar[str] = "Perfetto's JSON trace format"
    comment: ClassVar[str | None] = None
    rest: ClassVar[str] = "the trace has no word for it"

    def body(self, subject: Subject, notes: Notes) -> str:
        """See :class:`AbstractExport`.

        Raises:
            InputError: The plan has no prediction.
        """
        plan, price = subject.plan, subject.price()
        for key in facts(plan):
            notes.keep(key, "otherData.plan")
        for axis in ("dp_replicate", "dp_shard", "cp", "tp"):
            notes.lose(
                f"mesh.{axis}",
                f"the tracks are the ranks with coordinate 0; the {axis} peers of a rank are "
                "predicted to do the same at the same time",
            )
        events = simulate_plan(plan, price).events
        trace = {
            "traceEvents": [*_names(plan), *map(_slice, events)],
            "displayTimeUnit": "ms",
            "otherData": {
                "autopar_version": __version__,
                "name": plan.name,
                "source": "simulated",
                "plan": json.dumps(plan.with_predicted({}).to_dict(), allow_nan=False),
            },
        }
        return json.dumps(trace, allow_nan=False, indent=1) + "\n"


def _names(plan: Plan) -> list[dict[str, Any]]:
    """Metadata: the process is the plan, a thread is a rank."""
    rows = [_name("process_name", 0, f"predicted step of {plan.name}")]
    for stage in range(plan.mesh.pp):
        rank = plan.mesh.rank(pp=stage)
        rows.append(_name("thread_name", rank, f"rank {rank} (pipeline rank {stage})"))
    return rows


def _name(kind: str, rank: int, text: str) -> dict[str, Any]:
    return {"ph": "M", "name": kind, "pid": _PROCESS, "tid": rank, "args": {"name": text}}


def _slice(event: Event) -> dict[str, Any]:
    label = event.kind.replace("_", " ")
    args = {}
    if event.microbatch >= 0:
        label = f"{label} {event.microbatch}"
        args = {"stage": event.stage, "microbatch": event.microbatch}
    return {
        "ph": "X",
        "name": label,
        "cat": event.kind,
        "pid": _PROCESS,
        "tid": event.rank,
        "ts": event.start_s * _US_PER_S,
        "dur": (event.end_s - event.start_s) * _US_PER_S,
        "args": args,
    }
