"""Our step beside hand-written torch: the same processes, model, data, optimizer and threads.

Two ranks hold both and take turns: blocks of a few steps in the order ours, theirs, theirs, ours,
then the other way round. One such round is a *pair*; it gives the ratio of the two median step
times, each on the slower rank. What else the machine does hits both sides of a pair alike.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist

from autopar.core.stats import median
from autopar.executor.clock import Recorder, Silent
from autopar.executor.collector import quiet_collector, tidy
from autopar.executor.data import Microbatch
from autopar.executor.lowering import lower
from autopar.executor.own_loop import Session
from autopar.executor.own_loop_options import SessionOptions
from autopar.executor.session import Loop, make_context
from autopar.plans import Mesh, Plan, Stage
from autopar.tasks import Task
from autopar.tasks.resolve import resolve
from autopar.trace import TracedTask, trace
from autopar.validation import handwritten
from autopar.validation.ranks import on_ranks

RANKS = 2
BATCHES = 4
"""Different global batches that the timed steps take in turn."""
SEED = 0
_NORMAL_P90 = 1.2816
_MEDIAN_OVER_MEAN = math.sqrt(math.pi / 2)
"""Of a normal distribution: its 90 % point; standard error of its median over that of its mean."""
_BLOCK = "model.network.transformer.h."
_NORM = "model.network.transformer.ln_f."
"""Names of the weights of blocks, and of what comes after them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """A GPT and how long it is watched.

    Attributes:
        name: Its heading.
        target: The task.
        samples: In a microbatch.
        steps: In a block.
        note: What it stands for.
    """

    name: str
    target: str
    samples: int
    steps: int
    note: str


SIZES = (
    Size(
        name="tiny",
        target="zoo:gpt?layers=4&hidden=64&heads=4&vocab=256&seq=32",
        samples=4,
        steps=6,
        note="nothing but calls",
    ),
    Size(
        name="medium",
        target="zoo:gpt?layers=4&hidden=256&heads=4&vocab=2048&seq=128",
        samples=4,
        steps=3,
        note="ops that take as long as those of a model worth training",
    ),
)
OneStep = Callable[[int], torch.Tensor | None]
"""A training step on the batch of a number; returns the loss where it is known."""


@dataclass(frozen=True, kw_only=True)
class Duel:
    """Two ways to do one step.

    Attributes:
        name: Its heading.
        mesh: Of our plan.
        theirs: Makes the other side.
        ours: Makes our side.
        microbatches: Per replica.
        changes: Other fields of the plan.
        bound: The ratio that must not be passed.
    """

    name: str
    mesh: dict[str, int]
    theirs: Callable[[Bench], OneStep]
    ours: Callable[[Bench], OneStep] = lambda bench: bench.lowered()
    microbatches: int = 1
    changes: dict[str, Any] = field(default_factory=dict)
    bound: float = 1.02


class Bench:
    """What both sides of a duel are built from, on one rank.

    Args:
        task: The task.
        plan: Our plan.
    """

    def __init__(self, task: Task, plan: Plan) -> None:
        self.task = task
        self.plan = plan
        self.context = make_context(plan, task, torch.device("cpu"))
        replica = self.context.groups.replica
        self.batches: list[list[Microbatch]] = [
            self.context.data.microbatches(step, replica) for step in range(BATCHES)
        ]
        self.whole = [
            tuple(torch.cat(parts) for parts in zip(*batch, strict=True)) for batch in self.batches
        ]

    def lowered(self, recorder: Recorder | None = None) -> OneStep:
        """The step of ``autopar run``; it takes times for the timeline unless told otherwise."""
        context = make_context(self.plan, self.task, torch.device("cpu"), recorder=recorder)
        lowering = lower(context)

        def step(number: int) -> torch.Tensor | None:
            context.recorder.begin()
            return lowering.step(self.batches[number])

        return step

    def session(self) -> OneStep:
        """The step of a script's own loop."""
        session = Session(self.plan, self.task, SessionOptions())
        return lambda number: torch.tensor(session.step(*self.whole[number]))

    def loop(self) -> OneStep:
        """A step of the whole loop of ``autopar run``: data, step, times and losses of all."""
        loop = Loop(self.context, lower(self.context), range(2**40))
        counter = itertools.count()
        return lambda _: torch.tensor(loop.step(next(counter))[1])

    def loop_by_hand(self, step: handwritten.Step) -> OneStep:
        """The same of a script: the batch is made, the mean loss told to all."""
        logged, counter = handwritten.with_mean_loss(step), itertools.count()

        def whole(_: int) -> torch.Tensor | None:
            replica = self.context.groups.replica
            ((inputs, target),) = self.context.data.microbatches(next(counter), replica)
            return logged(inputs, target)

        return whole

    def by_hand(self, step: handwritten.Step) -> OneStep:
        """A hand-written one."""
        return lambda number: step(*self.whole[number])


def _ddp(bench: Bench) -> OneStep:
    return bench.by_hand(handwritten.data_parallel(bench.task, SEED))


def _logged_ddp(bench: Bench) -> OneStep:
    step = handwritten.data_parallel(bench.task, SEED)
    return bench.by_hand(handwritten.with_mean_loss(step))


def _silent(bench: Bench) -> OneStep:
    return bench.lowered(Silent())


_REPLICAS: dict[str, Any] = {"mesh": {"dp_replicate": 2}}
_SHARDS: dict[str, Any] = {"mesh": {"dp_shard": 2}, "changes": {"zero": 3}}
_STAGES: dict[str, Any] = {
    "mesh": {"pp": 2},
    "microbatches": 4,
    "changes": {"schedule": "1f1b"},
}
BY_HAND = (
    Duel(name="DDP", theirs=_ddp, **_REPLICAS),
    Duel(
        name="FSDP2",
        theirs=lambda bench: bench.by_hand(handwritten.sharded(bench.task, SEED)),
        **_SHARDS,
    ),
    Duel(
        name="FSDP2, tuned by hand",
        theirs=lambda bench: bench.by_hand(handwritten.sharded(bench.task, SEED, tuned=True)),
        **_SHARDS,
    ),
    Duel(
        name="1F1B",
        theirs=lambda bench: bench.by_hand(
            handwritten.pipelined(bench.task, SEED, microbatches=bench.plan.microbatches)
        ),
        **_STAGES,
    ),
    Duel(
        name="own loop",
        ours=lambda bench: bench.session(),
        theirs=_logged_ddp,
        **_REPLICAS,
    ),
    Duel(
        name="autopar run",
        ours=lambda bench: bench.loop(),
        theirs=lambda bench: bench.loop_by_hand(handwritten.data_parallel(bench.task, SEED)),
        **_REPLICAS,
    ),
)
"""The step of a plan beside what one writes for it by hand."""
TIMELINE = (
    Duel(name="DDP", theirs=_silent, bound=1.01, **_REPLICAS),
    Duel(name="FSDP2", theirs=_silent, bound=1.01, **_SHARDS),
    Duel(name="1F1B", theirs=_silent, bound=1.01, **_STAGES),
)
"""Our step with and without taking times."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """What a duel found, pair by pair.

    Attributes:
        duel: Name of the duel.
        size: Name of the size.
        bound: Of the duel.
        ours_s: Our median step time on the slower rank.
        theirs_s: The same of the other side.
        ours_fastest_s: Our fastest step on the rank where that is slower.
        theirs_fastest_s: The same of the other side.
        ours_cpu_s: What both ranks computed in one of our steps: it counts work, not waiting.
        theirs_cpu_s: The same of the other side.
        loss_difference: Largest relative difference of the losses of the first steps.
    """

    duel: str
    size: str
    bound: float
    ours_s: tuple[float, ...]
    theirs_s: tuple[float, ...]
    ours_fastest_s: tuple[float, ...]
    theirs_fastest_s: tuple[float, ...]
    ours_cpu_s: tuple[float, ...]
    theirs_cpu_s: tuple[float, ...]
    loss_difference: float

    @property
    def good(self) -> bool:
        """Fast enough."""
        return self.ratio <= self.bound

    @property
    def ratios(self) -> tuple[float, ...]:
        """Ours over theirs of each pair, in order of size."""
        return _ratios(self.ours_s, self.theirs_s)

    @property
    def ratio(self) -> float:
        """Median of :attr:`ratios`."""
        return median(self.ratios)

    @property
    def fastest_ratio(self) -> float:
        """Ours over theirs of the lower quartiles of the fastest steps: those least disturbed."""
        return _lower_quartile(self.ours_fastest_s) / _lower_quartile(self.theirs_fastest_s)

    @property
    def cpu_ratio(self) -> float:
        """The same of CPU seconds."""
        return median(_ratios(self.ours_cpu_s, self.theirs_cpu_s))

    @property
    def uncertainty(self) -> float:
        """Standard error of :attr:`ratio`, from the spread of the pairs as if it were normal."""
        spread = (self.quantile(0.9) - self.quantile(0.1)) / (2 * _NORMAL_P90)
        return _MEDIAN_OVER_MEAN * spread / math.sqrt(len(self.ratios))

    def quantile(self, part: float) -> float:
        """The ratio below which a part of all pairs lies."""
        return self.ratios[round(part * (len(self.ratios) - 1))]


def _ratios(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, ...]:
    return tuple(sorted(a / b for a, b in zip(ours, theirs, strict=True)))


def _lower_quartile(values: Sequence[float]) -> float:
    return sorted(values)[len(values) // 4]


def fight(duel: Duel, size: Size, *, pairs: int) -> Row:
    """Run a duel on forked ranks."""
    task = resolve(size.target)
    plan = make_plan(task, trace(task, size.samples, device="meta"), duel, size)

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


def make_plan(task: Task, traced: TracedTask, duel: Duel, size: Size) -> Plan:
    """Our plan of a duel: stages and units begin where the model's blocks do."""
    mesh = Mesh(**duel.mesh)
    starts, stop = _block_starts(traced), len(traced.nodes)
    edges = [0, starts[len(starts) // 2], stop] if mesh.pp > 1 else [0, stop]
    units = [*starts, _head(traced)]
    return Plan(
        task=traced.reference,
        mesh=mesh,
        stages=tuple(
            Stage(
                first_op=edges[s],
                stop_op=edges[s + 1],
                pp=s,
                units=tuple(itertools.pairwise(units)) if mesh.dp_shard > 1 else (),
            )
            for s in range(mesh.pp)
        ),
        microbatches=duel.microbatches,
        microbatch_size=size.samples,
        threads=1,
        seed=SEED,
        **duel.changes,
    )


def _block_starts(traced: TracedTask) -> list[int]:
    """First op of each block."""
    starts: dict[str, int] = {}
    for index, name in _reads(traced):
        if name.startswith(_BLOCK):
            starts.setdefault(name.removeprefix(_BLOCK).split(".")[0], index)
    return list(starts.values())


def _head(traced: TracedTask) -> int:
    """First op after the last block."""
    return next(i for i, name in _reads(traced) if name.startswith(_NORM))


def _reads(traced: TracedTask) -> list[tuple[int, str]]:
    """``(op, weight that it reads)`` in order."""
    return [
        (index, str(source.target))
        for index, node in enumerate(traced.nodes)
        for source in node.all_input_nodes
        if source.op == "get_attr"
    ]
