"""Our step beside hand-written torch: the same processes, model, data, optimizer and threads.

Two ranks hold both and take turns: blocks of a few steps in the order ours, theirs, theirs, ours,
then the other way round. One such round is a *pair*; it gives the ratio of the two median step
times, each on the slower rank. What else the machine does hits both sides of a pair alike.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch.distributed as dist

from autopar.core.stats import median
from autopar.executor.measuring.collector import quiet_collector, tidy
from autopar.tasks.resolve import resolve
from autopar.trace import trace
from autopar.validation.overhead.block_plan import make_plan
from autopar.validation.overhead.duels import BATCHES, Bench, Duel, OneStep, Size
from autopar.validation.overhead.ranks import on_ranks
from autopar.validation.overhead.row import Row

RANKS = 2


def fight(duel: Duel, size: Size, *, pairs: int) -> Row:
    """Run a duel on forked ranks."""
    task = resolve(size.target)
    plan = make_plan(trace(task, size.samples, device="meta"), duel, size)

    def body(_: int) -> tuple[_Sides, float]:
        bench = Bench(task, plan)
        sides = (duel.ours(bench), duel.theirs(bench))
        difference = _agreement(sides)
        return _pairs(sides, pairs, size.steps), difference

    found = on_ranks(RANKS, body)
    sides = [list(zip(*(rank[0][side] for rank in found), strict=True)) for side in range(2)]
    times = [tuple(max(rank[0] for rank in pair) for pair in side) for side in sides]
    fastest = [tuple(max(rank[1] for rank in pair) for pair in side) for side in sides]
    work = [tuple(sum(rank[2] for rank in pair) for pair in side) for side in sides]
    return Row(
        duel=duel.name,
        size=size.name,
        bound=duel.bound,
        ours_s=times[0],
        theirs_s=times[1],
        ours_fastest_s=fastest[0],
        theirs_fastest_s=fastest[1],
        ours_cpu_s=work[0],
        theirs_cpu_s=work[1],
        loss_difference=max(rank[1] for rank in found),
    )


_Sides = list[list[tuple[float, float, float]]]
"""Of each side and pair: median and least seconds of a step, its CPU seconds; on one rank."""


def _agreement(sides: Sequence[OneStep]) -> float:
    """Warm both up; largest relative difference of their losses."""
    worst = 0.0
    for number in range(BATCHES):
        losses = [side(number) for side in sides]
        known = [float(loss) for loss in losses if loss is not None]
        if len(known) == len(sides):
            worst = max(worst, abs(known[0] - known[1]) / abs(known[1]))
    return worst


def _pairs(sides: Sequence[OneStep], pairs: int, steps: int) -> _Sides:
    """What both sides took in each pair, on this rank."""
    found: _Sides = [[], []]
    with quiet_collector():
        for pair in range(pairs):
            times: list[list[float]] = [[], []]
            work = [0.0, 0.0]
            for side in (0, 1, 1, 0) if pair % 2 == 0 else (1, 0, 0, 1):
                dist.barrier()
                before = time.process_time()
                times[side] += _block(sides[side], steps)
                work[side] += time.process_time() - before
            for side in range(2):
                own = times[side]
                found[side].append((median(own), min(own), work[side] / len(own)))
            tidy(0)
    return found


def _block(step: OneStep, steps: int) -> list[float]:
    """Seconds of each of some steps on end."""
    times = []
    for i in range(steps):
        start = time.perf_counter()
        step(i % BATCHES)
        times.append(time.perf_counter() - start)
    return times
