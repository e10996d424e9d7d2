"""What people try first: always priced beside the best plan, or rejected with a reason."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from autopar.core.errors import InputError
from autopar.core.units import format_bytes
from autopar.cost import CostModel
from autopar.results import RankedPlan, Rejection
from autopar.schedules import SCHEDULES
from autopar.search.chunks import equal_blocks
from autopar.search.goal import Goal
from autopar.search.options import SearchOptions
from autopar.search.plans import layout_for, rank_plan
from autopar.search.point import Point
from autopar.search.space import divisors

MICROBATCHES_PER_RANK = 4
"""A plain pipeline uses about four microbatches per rank, the usual rule of thumb."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Baseline:
    """A plain plan.

    Attributes:
        name: As in results and reports.
        points: Points to try in order, given device count and global batch; the first that fits
            in memory is priced.
    """

    name: str
    points: Callable[[int, int], list[Point]]


def _replicated(replicas: int, batch: int, recompute: str) -> list[Point]:
    """One stage per replica, largest microbatch first."""
    if batch % replicas:
        return []
    samples = batch // replicas
    return [
        Point(
            dp_replicate=replicas,
            pp=1,
            schedule="none",
            chunks=1,
            microbatch_size=size,
            microbatches=samples // size,
            recompute=recompute,
        )
        for size in reversed(divisors(samples))
    ]


def _plain_pipeline(devices: int, batch: int) -> list[Point]:
    """GPipe over all devices, from about four microbatches per rank to the smallest ones."""
    if devices == 1:
        return []
    counts = divisors(batch)
    enough = [c for c in counts if c >= MICROBATCHES_PER_RANK * devices] or counts[-1:]
    return [
        Point(
            dp_replicate=1,
            pp=devices,
            schedule="gpipe",
            chunks=1,
            microbatch_size=batch // count,
            microbatches=count,
            recompute="none",
        )
        for count in enough
    ]


BASELINES = (
    Baseline(name="single device", points=lambda n, batch: _replicated(1, batch, "none")),
    Baseline(name="plain DDP", points=lambda n, batch: _replicated(n, batch, "none")),
    Baseline(name="plain pipeline", points=_plain_pipeline),
    Baseline(name="DDP + recompute", points=lambda n, batch: _replicated(n, batch, "full")),
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
    devices, blocks = model.cluster.device_count, len(model.profile.blocks)
    points = baseline.points(devices, batch)
    if not points:
        detail = (
            f"global batch {batch} is not divisible by {devices} devices"
            if batch % devices
            else "needs two or more devices"
        )
        return Rejection(
            name=baseline.name, reason="batch" if batch % devices else "devices", detail=detail
        )
    if points[0].stages > blocks:
        return Rejection(
            name=baseline.name,
            reason="stages",
            detail=f"{points[0].stages} stages are more than the {blocks} blocks of the model",
        )
    return _first_that_fits(baseline.name, points, model, options)


def _first_that_fits(
    name: str, points: list[Point], model: CostModel, options: SearchOptions
) -> RankedPlan | Rejection:
    smallest = None
    for point in points:
        if SCHEDULES.load(point.schedule).check(point.pp, point.stages, point.microbatches):
            continue
        cuts = equal_blocks(len(model.profile.blocks), point.stages)
        goal = Goal(
            layout=layout_for(point, model, options),
            objective="time",
            max_memory_bytes=options.max_memory_bytes,
        )
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
        f"{point.microbatch_size}, the device has {format_bytes(goal.limit(rank))}",
    )
