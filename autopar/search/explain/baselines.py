"""What people try first: always priced beside the best plan, or rejected with a reason."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache

from autopar.core.errors import InputError
from autopar.core.units import format_bytes
from autopar.cost import CostModel
from autopar.cost.layout import Cuts
from autopar.results import RankedPlan, Rejection
from autopar.schedules import SCHEDULES
from autopar.search.options import SearchOptions
from autopar.search.space.build import divisors
from autopar.search.space.plans import layout_for, rank_plan
from autopar.search.space.point import Point
from autopar.search.stages.chunks import equal_blocks
from autopar.search.stages.goal import Goal
from autopar.strategies import Split, Strategies

MICROBATCHES_PER_RANK = 4
"""A plain pipeline uses about four microbatches per rank, the usual rule of thumb."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What rules of thumb look at.

    Attributes:
        devices: Devices of the cluster.
        node: Devices of a node.
        batch: Samples per step.
        strategies: How the model can be divided.
    """

    devices: int
    node: int
    batch: int
    strategies: Strategies

    @property
    def replicas(self) -> int:
        """Most replicas that share the batch evenly."""
        return max(d for d in divisors(self.batch) if d <= self.devices)


@dataclass(frozen=True, slots=True, kw_only=True)
class Baseline:
    """A plain plan.

    Attributes:
        name: As in results and reports.
        points: Points to try in order; the first that fits in memory is priced.
        tuned: Each point stands for all its microbatch sizes and recompute modes; the next point
            is taken instead while it is faster.
    """

    name: str
    points: Callable[[Setting], list[Point]]
    tuned: bool = False


def _replicated(replicas: int, batch: int, recompute: str, zero: int = 0) -> list[Point]:
    """One stage per replica, largest microbatch first."""
    samples = batch // replicas
    return [
        Point(
            dp_replicate=1 if zero else replicas,
            dp_shard=replicas if zero else 1,
            zero=zero,
            microbatch_size=size,
            microbatches=samples // size,
            recompute=recompute,
        )
        for size in reversed(divisors(samples))
    ]


def _sharded(setting: Setting) -> list[Point]:
    """ZeRO-3 over all replicas, without recompute if that fits."""
    if setting.replicas < 2:
        return []
    plain = _replicated(setting.replicas, setting.batch, "none", zero=3)
    return plain + _replicated(setting.replicas, setting.batch, "full", zero=3)


def _plain_pipeline(setting: Setting) -> list[Point]:
    """GPipe over all devices, from about four microbatches per rank to the smallest ones."""
    if setting.devices == 1:
        return []
    counts = divisors(setting.batch)
    enough = [c for c in counts if c >= MICROBATCHES_PER_RANK * setting.devices] or counts[-1:]
    return [
        Point(
            pp=setting.devices,
            schedule="gpipe",
            microbatch_size=setting.batch // count,
            microbatches=count,
        )
        for count in enough
    ]


def _node_rule(setting: Setting) -> list[Point]:
    """Tensor parallel inside the node, a short pipeline, data parallel outside.

    Narayanan et al. 2021 (arXiv 2104.04473, takeaways 1 and 2): 1F1B, states shared out over the
    replicas; microbatch size and recompute as they are fastest (takeaway 3). With sequence
    parallelism where the model has it, as Korthikanti et al. 2022 (arXiv 2205.05198) advise.
    """
    why_not = setting.strategies.why_not
    tp = max(d for d in divisors(setting.node) if why_not(Split(tp=d)) is None)
    if tp == 1:
        return []
    has_sequence = setting.strategies.context.length > 0
    shared = has_sequence and why_not(Split(tp=tp, sequence_parallel=True)) is None
    points = []
    for pp in divisors(setting.devices // tp):
        dp = setting.devices // (tp * pp)
        if setting.batch % dp:
            continue
        points.append(
            Point(
                dp_shard=dp,
                zero=1 if dp > 1 else 0,
                tp=tp,
                sequence_parallel="on" if shared else "off",
                pp=pp,
                schedule="1f1b" if pp > 1 else "none",
                microbatches=setting.batch // dp,
            )
        )
    return points


BASELINES = (
    Baseline(name="single device", points=lambda s: _replicated(1, s.batch, "none")),
    Baseline(
        name="plain DDP",
        points=lambda s: _replicated(s.replicas, s.batch, "none") if s.devices > 1 else [],
    ),
    Baseline(name="plain pipeline", points=_plain_pipeline),
    Baseline(
        name="DDP + recompute",
        points=lambda s: _replicated(s.replicas, s.batch, "full") if s.devices > 1 else [],
    ),
    Baseline(name="ZeRO-3 (FSDP)", points=_sharded),
    Baseline(name="tp in the node, pp, dp", points=_node_rule, tuned=True),
)


def price_baselines(
    model: CostModel, options: SearchOptions, batch: int
) -> dict[str, RankedPlan | Rejection]:
    """Every baseline, priced or rejected with its reason."""
    return {
        baseline.name: price_baseline(baseline, model, options, batch) for baseline in BASELINES
    }


def price_baseline(
    baseline: Baseline, model: CostModel, options: SearchOptions, batch: int
) -> RankedPlan | Rejection:
    """The first point of a baseline that fits, or why none does."""
    setting = Setting(
        devices=model.cluster.device_count,
        node=model.cluster.groups[0].machine.devices_per_node,
        batch=batch,
        strategies=model.strategies,
    )
    blocks = len(model.profile.blocks)
    points = baseline.points(setting)
    if not points:
        detail = "needs two or more devices" if setting.devices == 1 else "not for this model"
        return Rejection(name=baseline.name, reason="devices", detail=detail)
    if points[0].stages > blocks:
        return Rejection(
            name=baseline.name,
            reason="stages",
            detail=f"{points[0].stages} stages are more than the {blocks} blocks of the model",
        )
    if baseline.tuned:
        points = _fastest(points, model, options)
    return _first_that_fits(baseline.name, points, model, options)


def _fastest(points: list[Point], model: CostModel, options: SearchOptions) -> list[Point]:
    """The first point that fits when tuned, or a later one while each is faster than before."""
    best: tuple[float, Point | None] = (math.inf, None)
    for point in points:
        if point.stages > len(model.profile.blocks):
            break
        tuned = tune(point, model, options)
        if best[1] is not None and tuned[0] >= best[0]:
            break
        best = tuned
    return [best[1]] if best[1] is not None else [replace(points[-1], recompute="full")]


def tune(point: Point, model: CostModel, options: SearchOptions) -> tuple[float, Point | None]:
    """Step time and point with the fastest microbatch size and recompute mode that fit."""
    samples = point.microbatches * point.microbatch_size
    check = SCHEDULES.load(point.schedule).check
    sizes = [
        size
        for size in divisors(samples)
        if size >= model.profile.smallest_microbatch
        and not check(point.pp, point.stages, samples // size)
    ]
    least = MICROBATCHES_PER_RANK * point.pp if point.pp > 1 else 1
    start = max((i for i, size in enumerate(sizes) if samples // size >= least), default=0)
    cuts = equal_blocks(len(model.profile.blocks), point.stages)
    found: tuple[float, Point | None] = (math.inf, None)
    for mode in ("none", "selective", "full"):
        ladder = [
            replace(point, microbatch_size=b, microbatches=samples // b, recompute=mode)
            for b in sizes
        ]
        seconds, tuned, limited = _climb(ladder, start, cuts, model, options)
        if seconds < found[0]:
            found = (seconds, tuned)
        if not limited:  # more recompute would only buy memory that nobody needs
            break
    return found


def _climb(
    ladder: Sequence[Point], start: int, cuts: Cuts, model: CostModel, options: SearchOptions
) -> tuple[float, Point | None, bool]:
    """Step time and point of the fastest of a few sizes that fit; whether memory stopped it.

    The step time falls while kernels get larger and rises with the bubble: from a size with a
    small bubble down to one that fits, then to either side while that is faster.
    """

    @cache
    def seconds(place: int) -> float:
        if not 0 <= place < len(ladder):
            return math.inf
        goal = _goal(ladder[place], model, options)
        return goal.layout.step_seconds(cuts) if goal.feasible(cuts) else math.inf

    place = start
    while place > 0 and math.isinf(seconds(place)):
        place -= 1
    if math.isinf(seconds(place)):
        return math.inf, None, True
    for way in (1, -1):
        while seconds(place + way) < seconds(place):
            place += way
    limited = place + 1 < len(ladder) and math.isinf(seconds(place + 1))
    return seconds(place), ladder[place], limited


def _first_that_fits(
    name: str, points: list[Point], model: CostModel, options: SearchOptions
) -> RankedPlan | Rejection:
    smallest = None
    blocks = len(model.profile.blocks)
    for point in _worth_trying(points, model, options):
        if SCHEDULES.load(point.schedule).check(point.pp, point.stages, point.microbatches):
            continue
        if point.stages > blocks:
            break
        cuts = equal_blocks(blocks, point.stages)
        goal = _goal(point, model, options)
        try:
            if goal.feasible(cuts):
                return rank_plan(point, cuts, model, options)
        except InputError as error:
            return Rejection(name=name, reason="device", detail=error.message)
        smallest = (goal, cuts, point)
    if smallest is None:
        return Rejection(name=name, reason="schedule", detail="no microbatch count fits")
    goal, cuts, point = smallest
    rank, needed = goal.tightest(cuts)
    return Rejection(
        name=name,
        reason="memory",
        detail=f"needs {format_bytes(needed)} on rank {rank} with microbatches of "
        f"{point.microbatch_size}, {goal.holder(rank)} {format_bytes(goal.limit(rank))}",
    )


def _goal(point: Point, model: CostModel, options: SearchOptions) -> Goal:
    return Goal(
        layout=layout_for(point, model, options),
        objective="time",
        max_memory_bytes=options.max_memory_bytes,
    )


def _worth_trying(
    points: list[Point], model: CostModel, options: SearchOptions
) -> Iterator[Point]:
    """The points in order, without those that have no chance.

    On one pipeline rank a larger microbatch never needs less: where the smallest one of several
    does not fit, it stands for all of them.
    """
    whole = (0, len(model.profile.blocks))
    for _, alike in itertools.groupby(
        points, lambda p: replace(p, microbatch_size=1, microbatches=1)
    ):
        some = list(alike)
        if some[0].pp > 1 or len(some) == 1:
            yield from some
            continue
        yield some[0]  # most often it fits
        fits = _goal(some[-1], model, options).feasible(whole)
        yield from some[1:] if fits else some[-1:]
