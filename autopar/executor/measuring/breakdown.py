"""From the spans of all ranks to a timeline and to where the seconds of a step went."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import get_args

from autopar.executor.measuring.clock import Phase, Span
from autopar.plans import Plan
from autopar.results import CostBreakdown, Event, Timeline

BACKWARD = ("backward", "backward_input", "backward_weight")
"""Kinds of span inside which recomputation may run."""


def timeline(spans: Sequence[Sequence[Span]]) -> Timeline:
    """The measured timeline of one step.

    Args:
        spans: Spans of each rank; second 0 is when the rank left the barrier before the step.
    """
    events = [
        Event(
            rank=rank,
            kind=span.kind,
            start_s=span.start_s,
            end_s=span.end_s,
            stage=span.stage,
            microbatch=span.microbatch,
        )
        for rank, own in enumerate(spans)
        for span in _without_recompute(own)
    ]
    return Timeline(events=tuple(sorted(events, key=lambda e: e.start_s)), source="measured")


def _without_recompute(spans: Sequence[Span]) -> list[Span]:
    """Cut the recomputation out of the backward spans it ran inside."""
    inner = [s for s in spans if s.kind == "recompute"]
    result = []
    for span in spans:
        place = span.start_s
        if span.kind in BACKWARD:
            for part in inner:
                if span.start_s <= part.start_s and part.end_s <= span.end_s:
                    result.append(replace(span, start_s=place, end_s=part.start_s))
                    place = part.end_s
        result.append(replace(span, start_s=place))
    return result


def breakdown(
    plan: Plan, spans: Sequence[Sequence[Span]], rank: int, step_s: float
) -> CostBreakdown:
    """Where the seconds of a rank went; the parts sum to ``step_s``.

    A wait for another stage is *bubble* until that stage had finished the action that made the
    value, and *pipeline communication* from then on.

    Args:
        plan: The plan that ran.
        spans: Spans of each rank in one step.
        rank: The rank to account for.
        step_s: Time of the step on that rank.
    """
    totals = dict.fromkeys(get_args(Phase), 0.0)
    communication = 0.0
    for span in spans[rank]:
        totals[span.kind] += span.end_s - span.start_s
        if span.kind == "wait":
            sent = _sent_at(plan, spans, rank, span)
            communication += span.end_s - min(max(span.start_s, sent), span.end_s)
    known = sum(totals.values()) - totals["recompute"]
    return CostBreakdown(
        forward_s=totals["forward"],
        backward_s=sum(totals[kind] for kind in BACKWARD) - totals["recompute"],
        recompute_s=totals["recompute"],
        pipeline_communication_s=communication,
        gradient_sync_s=totals["sync"],
        bubble_s=totals["wait"] - communication,
        optimizer_s=totals["optimizer"],
        other_s=step_s - known,
    )


def _sent_at(plan: Plan, spans: Sequence[Sequence[Span]], rank: int, wait: Span) -> float:
    """End of the action of the peer stage that made what the wait was for."""
    coordinates = {**plan.mesh.coordinates(rank), "pp": plan.stages[wait.peer].pp}
    for span in spans[plan.mesh.rank(**coordinates)]:
        if (span.kind, span.stage, span.microbatch) == (wait.towards, wait.peer, wait.microbatch):
            return span.end_s
    raise AssertionError(f"stage {wait.peer} has no {wait.towards} of {wait.microbatch}")
