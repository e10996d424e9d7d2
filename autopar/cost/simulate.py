"""Discrete-event simulation of one step from the schedule's own action lists.

Semantics of the executor: sends never block the sender, receives are posted early, each directed
link between two ranks carries one message at a time in the order they were sent, and a tensor goes
straight from its producer stage to each consumer stage.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from autopar.core.errors import InputError
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
    """

    ranks: int
    stages: int
    microbatches: int
    splits: bool
    rank_of: tuple[int, ...]
    order: tuple[tuple[int, int, int], ...]

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
    return Program(
        ranks=ranks,
        stages=stages,
        microbatches=microbatches,
        splits=schedule.splits_backward,
        rank_of=tuple(schedule.rank_of(s, ranks) for s in range(stages)),
        order=_merge(encoded, stages),
    )


_KINDS = {"forward": 0, "backward": 1, "backward_input": 1, "backward_weight": 2}


def _merge(encoded: list[list[tuple[int, int]]], stages: int) -> tuple[tuple[int, int, int], ...]:
    """Round robin over the ranks, each as far as the chain of stages lets it go."""
    done = [0] * (3 * stages)
    position = [0] * len(encoded)
    order: list[tuple[int, int, int]] = []
    total = sum(map(len, encoded))
    while len(order) < total:
        before = len(order)
        for rank, actions in enumerate(encoded):
            at = position[rank]
            while at < len(actions):
                node, microbatch = actions[at]
                if node < stages:
                    need = node - 1
                elif node >= 2 * stages:
                    need = node - stages
                else:
                    need = node + 1 if node < 2 * stages - 1 else stages - 1
                if need >= 0 and done[need] <= microbatch:
                    break
                done[node] += 1
                order.append((rank, node, microbatch))
                at += 1
            position[rank] = at
        if len(order) == before:
            raise InputError("the schedule deadlocks", hint="report it; choose another schedule")
    return tuple(order)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wiring:
    """Where each node waits for messages and sends them; slots index the arrival table.

    Attributes:
        waits: Node -> first slots of the messages it needs.
        sends: Node -> ``(link, seconds, first slot)`` of the messages it sends.
        sources: First slot -> node that sends it.
        links: Number of directed links.
        slots: Size of the arrival table.
    """

    waits: tuple[tuple[int, ...], ...]
    sends: tuple[tuple[tuple[int, float, int], ...], ...]
    sources: dict[int, int]
    links: int
    slots: int


def wire(program: Program, transfers: Sequence[Transfer]) -> Wiring:
    """Lay out the messages of a step; transfers within a rank are free and already ordered."""
    stages, microbatches = program.stages, program.microbatches
    waits: list[list[int]] = [[] for _ in range(program.nodes)]
    sends: list[list[tuple[int, float, int]]] = [[] for _ in range(program.nodes)]
    links: dict[tuple[int, int], int] = {}
    sources: dict[int, int] = {}
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
                sends[sender].append((link, seconds, slot))
                waits[receiver].append(slot)
                sources[slot] = sender
                slot += microbatches
    return Wiring(
        waits=tuple(map(tuple, waits)),
        sends=tuple(map(tuple, sends)),
        sources=sources,
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
    free = [0.0] * program.ranks
    link_free = [0.0] * wiring.links
    arrival = [0.0] * wiring.slots
    waits, sends = wiring.waits, wiring.sends
    for rank, node, microbatch in program.order:
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
            begin = max(begin, now)
            begin += seconds
            link_free[link] = begin
            arrival[slot + microbatch] = begin
    return free


def node_seconds(costs: Sequence[StageCost], program: Program) -> list[float]:
    """Durations by node: forwards, backwards with their recompute, weight halves if split."""
    forward = [c.forward_s for c in costs]
    if not program.splits:
        return forward + [c.backward_s + c.recompute_s for c in costs]
    inputs = [c.backward_s - c.weight_s + c.recompute_s for c in costs]
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
