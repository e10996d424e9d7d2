"""Discrete-event simulation of one step from the schedule's own action lists.

Semantics of the executor: sends never block the sender, receives are posted early, each directed
link between two ranks carries one message at a time in the order they were sent, and a tensor goes
straight from its producer stage to each consumer stage. On a crowded CPU host (``at_need``) a
message is taken in by the reader itself when it needs it, before its action.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from autopar.core.errors import InputError
from autopar.cost.simulation.steady import Clocks, Order, Steady, Watch, find_steady, needed
from autopar.results import StageCost, Transfer
from autopar.schedules import AbstractSchedule


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """A schedule's actions in one global order in which everything an action needs came before.

    Attributes:
        ranks: Pipeline ranks.
        stages: Virtual stages.
        microbatches: Microbatches per step.
        splits: True when weight gradients are actions of their own.
        rank_of: Pipeline rank of each stage.
        order: ``(rank, node, microbatch)``; node ``s`` is the forward of stage ``s``, node
            ``stages + s`` its backward (or its input half), node ``2 stages + s`` the weight half.
        steady: Periodic part of the order, ``None`` where there is none worth a jump.
    """

    ranks: int
    stages: int
    microbatches: int
    splits: bool
    rank_of: tuple[int, ...]
    order: Order
    steady: Steady | None

    @property
    def nodes(self) -> int:
        """Kinds of action."""
        return (3 if self.splits else 2) * self.stages


def compile_program(
    schedule: AbstractSchedule, ranks: int, stages: int, microbatches: int
) -> Program:
    """Merge the action lists of all ranks into one order.

    Raises:
        InputError: The schedule cannot run with these numbers.
    """
    reason = schedule.check(ranks, stages, microbatches)
    if reason is not None:
        raise InputError(reason, hint="choose another schedule or number of microbatches")
    lists = schedule.actions(ranks, stages, microbatches)
    encoded = [
        [(_KINDS[a.kind] * stages + a.stage, a.microbatch) for a in actions] for actions in lists
    ]
    order = _merge(encoded, stages)
    nodes = (3 if schedule.splits_backward else 2) * stages
    round_size = microbatches // max(1, microbatches // ranks)
    return Program(
        ranks=ranks,
        stages=stages,
        microbatches=microbatches,
        splits=schedule.splits_backward,
        rank_of=tuple(schedule.rank_of(s, ranks) for s in range(stages)),
        order=order,
        steady=find_steady(order, nodes, (1, round_size)),
    )


_KINDS = {"forward": 0, "backward": 1, "backward_input": 1, "backward_weight": 2}


def _merge(encoded: list[list[tuple[int, int]]], stages: int) -> Order:
    """All actions by their start if each took one unit of time, then by rank.

    Found round robin over the ranks, each as far as the chain of stages lets it go. Any order that
    respects the chain gives the same times; this one is as periodic as the lists are.
    """
    ends: list[list[int]] = [[] for _ in range(3 * stages)]
    needs = [needed(node, stages) for node in range(3 * stages)]
    free, position = [0] * len(encoded), [0] * len(encoded)
    found: list[tuple[int, int, int, int]] = []
    total = sum(map(len, encoded))
    while len(found) < total:
        before = len(found)
        for rank, actions in enumerate(encoded):
            at, now = position[rank], free[rank]
            while at < len(actions):
                node, microbatch = actions[at]
                need = needs[node]
                if need >= 0:
                    if len(ends[need]) <= microbatch:
                        break
                    end = ends[need][microbatch]
                    if end > now:  # noqa: PLR1730 - max() costs a call in the hot loop
                        now = end
                found.append((now, rank, node, microbatch))
                now += 1
                ends[node].append(now)
                at += 1
            position[rank], free[rank] = at, now
        if len(found) == before:
            raise InputError("the schedule deadlocks", hint="report it; choose another schedule")
    found.sort()
    return tuple((rank, node, microbatch) for _, rank, node, microbatch in found)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wiring:
    """Where each node waits for messages and sends them; slots index the arrival table.

    Attributes:
        waits: Node -> first slots of the messages it needs.
        sends: Node -> ``(link, seconds, first slot)`` of the messages it sends.
        sources: First slot -> node that sends it.
        windows: ``(first slot, sending node, reading node)`` of every kind of message.
        links: Number of directed links.
        slots: Size of the arrival table.
    """

    waits: tuple[tuple[int, ...], ...]
    sends: tuple[tuple[tuple[int, float, int], ...], ...]
    sources: dict[int, int]
    windows: tuple[tuple[int, int, int], ...]
    links: int
    slots: int


def wire(program: Program, transfers: Sequence[Transfer]) -> Wiring:
    """Lay out the messages of a step; transfers within a rank are free and already ordered."""
    stages, microbatches = program.stages, program.microbatches
    waits: list[list[int]] = [[] for _ in range(program.nodes)]
    sends: list[list[tuple[int, float, int]]] = [[] for _ in range(program.nodes)]
    links: dict[tuple[int, int], int] = {}
    sources: dict[int, int] = {}
    windows: list[tuple[int, int, int]] = []
    slot = 0
    for transfer in sorted(transfers, key=lambda t: (t.producer, t.consumer)):
        source, target = program.rank_of[transfer.producer], program.rank_of[transfer.consumer]
        if source == target:
            continue
        ends = (
            (transfer.producer, transfer.consumer, source, target, transfer.forward_s),
            (
                stages + transfer.consumer,
                stages + transfer.producer,
                target,
                source,
                transfer.backward_s,
            ),
        )
        for sender, receiver, origin, goal, seconds in ends:
            if seconds > 0:
                link = links.setdefault((origin, goal), len(links))
                sends[sender].append((link, 0.0 if transfer.at_need else seconds, slot))
                waits[receiver].append(slot)
                sources[slot] = sender
                windows.append((slot, sender, receiver))
                slot += microbatches
    return Wiring(
        waits=tuple(map(tuple, waits)),
        sends=tuple(map(tuple, sends)),
        sources=sources,
        windows=tuple(windows),
        links=len(links),
        slots=slot,
    )


def run(
    program: Program,
    durations: Sequence[float],
    wiring: Wiring,
    starts: list[float] | None = None,
) -> list[float]:
    """Time at which each pipeline rank has run its last action.

    Args:
        program: The order.
        durations: Seconds by node.
        wiring: Messages.
        starts: Filled with the start of every action in order, when given.
    """
    clocks = Clocks(
        free=[0.0] * program.ranks,
        link_free=[0.0] * wiring.links,
        arrival=[0.0] * wiring.slots,
    )
    steady, order = program.steady, program.order
    if starts is not None or steady is None:
        _advance(order, clocks, durations, wiring, starts)
        return clocks.free
    _advance(order[: steady.start], clocks, durations, wiring)
    watch = Watch(steady, wiring.windows)
    at, period = steady.start, 0
    while period < steady.periods:
        _advance(order[at : at + steady.length], clocks, durations, wiring)
        passed = 1 + watch.skip(clocks, period)
        at += passed * steady.length
        period += passed
    _advance(order[at:], clocks, durations, wiring)
    return clocks.free


def _advance(
    order: Order,
    clocks: Clocks,
    durations: Sequence[float],
    wiring: Wiring,
    starts: list[float] | None = None,
) -> None:
    """Run some actions, each when its rank is free and its messages have come."""
    free, link_free, arrival = clocks.free, clocks.link_free, clocks.arrival
    waits, sends = wiring.waits, wiring.sends
    for rank, node, microbatch in order:
        now = free[rank]
        for slot in waits[node]:
            came = arrival[slot + microbatch]
            if came > now:  # noqa: PLR1730 - max() costs a call in the hot loop
                now = came
        if starts is not None:
            starts.append(now)
        now += durations[node]
        free[rank] = now
        for link, seconds, slot in sends[node]:
            begin = link_free[link]
            if begin < now:  # noqa: PLR1730
                begin = now
            begin += seconds
            link_free[link] = begin
            arrival[slot + microbatch] = begin


def node_seconds(costs: Sequence[StageCost], program: Program) -> list[float]:
    """Durations by node: forwards, backwards with their recompute, weight halves if split.

    What a rank receives when it needs it is part of the action that reads it.
    """
    forward = [c.receive_s + c.forward_s for c in costs]
    backward = [c.backward_receive_s + c.backward_s + c.recompute_s for c in costs]
    if not program.splits:
        return forward + backward
    inputs = [whole - c.weight_s for whole, c in zip(backward, costs, strict=True)]
    return forward + inputs + [c.weight_s for c in costs]


def finish(
    free: Sequence[float],
    costs: Sequence[StageCost],
    tied: Sequence[tuple[tuple[int, ...], float]],
    rank_of: Sequence[int],
) -> tuple[list[float], list[float]]:
    """Time after gradient synchronisation and after the optimizer, per pipeline rank.

    Args:
        free: Time after the last action.
        costs: Per virtual stage.
        tied: ``(pipeline ranks, seconds)`` of the sums over copies of tied parameters; the ranks
            of one wait for each other.
        rank_of: Pipeline rank of each virtual stage.
    """
    synced = list(free)
    for rank, cost in zip(rank_of, costs, strict=True):
        synced[rank] += cost.exposed_sync_s
    for members, seconds in tied:
        together = max(synced[rank] for rank in members) + seconds
        for rank in members:
            synced[rank] = together
    ends = list(synced)
    for rank, cost in zip(rank_of, costs, strict=True):
        ends[rank] += cost.optimizer_s
    return synced, ends
