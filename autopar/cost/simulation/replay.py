"""Draw a priced plan again: its timeline and where its seconds go."""

from __future__ import annotations

from dataclasses import dataclass

from autopar.cost.simulation.simulate import (
    Program,
    compile_program,
    finish,
    node_seconds,
    run,
    wire,
)
from autopar.plans import Plan
from autopar.results import CostBreakdown, Event, PlanPrice, StageCost, Timeline
from autopar.schedules import SCHEDULES


@dataclass(frozen=True, slots=True, kw_only=True)
class _Replay:
    """Starts of all actions of one simulated step and the ends of its tail."""

    program: Program
    durations: list[float]
    sources: dict[int, int]
    waits: tuple[tuple[int, ...], ...]
    starts: list[float]
    free: list[float]
    synced: list[float]
    ends: list[float]


def _replay(plan: Plan, price: PlanPrice, program: Program | None = None) -> _Replay:
    if program is None:
        schedule = SCHEDULES.load(plan.schedule)
        program = compile_program(schedule, plan.mesh.pp, len(plan.stages), plan.microbatches)
    wiring = wire(program, price.transfers)
    durations = node_seconds(price.stage_costs, program)
    starts: list[float] = []
    free = run(program, durations, wiring, starts)
    tied = [(t.ranks, t.seconds) for t in price.tied_syncs]
    synced, ends = finish(free, price.stage_costs, tied, program.rank_of)
    return _Replay(
        program=program,
        durations=durations,
        sources=wiring.sources,
        waits=wiring.waits,
        starts=starts,
        free=free,
        synced=synced,
        ends=[end + price.step_overhead_s for end in ends],
    )


def simulate_plan(plan: Plan, price: PlanPrice) -> Timeline:
    """The simulated step of a priced plan, as seen by the ranks of replica 0.

    Raises:
        InputError: The plan's schedule cannot run with its stages and microbatches.
    """
    replay = _replay(plan, price)
    events: list[Event] = []
    free = [0.0] * replay.program.ranks
    for (rank, node, microbatch), start in zip(replay.program.order, replay.starts, strict=True):
        leader = plan.mesh.rank(pp=rank)
        stage = node % replay.program.stages
        if start > free[rank]:
            events.append(_event(leader, "wait", free[rank], start, stage, microbatch))
        cost = price.stage_costs[stage]
        free[rank] = start + replay.durations[node]
        events += _action_events(leader, node, stage, microbatch, start, cost, replay)
    for rank in range(replay.program.ranks):
        leader = plan.mesh.rank(pp=rank)
        tail = (
            ("sync", replay.free[rank], replay.synced[rank]),
            ("optimizer", replay.synced[rank], replay.ends[rank] - price.breakdown.other_s),
        )
        events += [_event(leader, kind, a, b, -1, -1) for kind, a, b in tail if b > a]
    events.sort(key=lambda event: (event.start_s, event.rank))
    return Timeline(events=tuple(events), source="simulated")


def _action_events(
    leader: int,
    node: int,
    stage: int,
    microbatch: int,
    start: float,
    cost: StageCost,
    replay: _Replay,
) -> list[Event]:
    end = start + replay.durations[node]
    parts = [("backward_weight", end)]
    if node < replay.program.stages:
        parts = [("wait", start + cost.receive_s), ("forward", end)]
    elif node < 2 * replay.program.stages:
        received = start + cost.backward_receive_s
        kind = "backward_input" if replay.program.splits else "backward"
        parts = [("wait", received), ("recompute", received + cost.recompute_s), (kind, end)]
    events = []
    for kind, until in parts:
        stop = min(until, end)  # sums in another order may round beyond it
        if stop > start or kind not in ("wait", "recompute"):
            events.append(_event(leader, kind, start, stop, stage, microbatch))
        start = stop
    return events


def _event(rank: int, kind: str, start: float, end: float, stage: int, microbatch: int) -> Event:
    return Event(
        rank=rank, kind=kind, start_s=start, end_s=end, stage=stage, microbatch=microbatch
    )


def step_and_breakdown(
    plan: Plan, price: PlanPrice, program: Program
) -> tuple[float, CostBreakdown]:
    """Step seconds, and where they go on the pipeline rank that ends last.

    Idle time before an action is communication from the moment the sender of the last message
    had finished, and bubble before that. Of the price's own breakdown only ``other_s`` is read.
    """
    replay = _replay(plan, price, program)
    critical = max(range(replay.program.ranks), key=lambda rank: replay.ends[rank])
    costs = [
        cost
        for cost, rank in zip(price.stage_costs, replay.program.rank_of, strict=True)
        if rank == critical
    ]
    m, other_s = plan.microbatches, price.breakdown.other_s
    received_s = sum(c.receive_s + c.backward_receive_s for c in costs)
    communication = _communication(replay, critical) + m * received_s
    parts = {
        "forward_s": m * sum(c.forward_s - c.forward_collective_s for c in costs),
        "backward_s": m * sum(c.backward_s - c.backward_collective_s for c in costs),
        "recompute_s": m * sum(c.recompute_s - c.recompute_collective_s for c in costs),
        "collective_s": m
        * sum(
            c.forward_collective_s + c.backward_collective_s + c.recompute_collective_s
            for c in costs
        ),
        "pipeline_communication_s": communication,
        "gradient_sync_s": replay.synced[critical] - replay.free[critical],
        "optimizer_s": replay.ends[critical] - replay.synced[critical] - other_s,
        "other_s": other_s,
    }
    bubble = replay.ends[critical] - sum(parts.values())
    return max(replay.ends), CostBreakdown(**parts, bubble_s=max(0.0, bubble))


def _communication(replay: _Replay, critical: int) -> float:
    """Idle seconds of a rank while a message it needs was under way."""
    ended: dict[tuple[int, int], float] = {}
    free = total = 0.0
    for (rank, node, microbatch), start in zip(replay.program.order, replay.starts, strict=True):
        ended[node, microbatch] = start + replay.durations[node]
        if rank != critical:
            continue
        if start > free and replay.waits[node]:
            senders = (replay.sources[slot] for slot in replay.waits[node])
            sent = max(ended[sender, microbatch] for sender in senders)
            total += start - min(max(free, sent), start)
        free = start + replay.durations[node]
    return total
