"""Specific plans: one that a specification names, or several spread over the ranking."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from autopar.cluster import Cluster
from autopar.core.errors import InfeasibleError, InputError
from autopar.core.units import format_bytes
from autopar.cost import CostModel
from autopar.graph import GraphProfile
from autopar.results import RankedPlan
from autopar.search.bounds.quick import QuickBounds
from autopar.search.options import SearchOptions
from autopar.search.space.build import build_space
from autopar.search.space.named import point_of
from autopar.search.space.plans import rank_plan
from autopar.search.space.point import Point
from autopar.search.space.spec import parse_spec
from autopar.search.stages.chunks import equal_blocks
from autopar.search.stages.goals import goal_for
from autopar.search.stages.partition import PartitionSearch


def plan_for(
    profile: GraphProfile,
    cluster: Cluster,
    spec: str | Mapping[str, int | str] | Point,
    options: SearchOptions | None = None,
) -> RankedPlan:
    """The best boundaries for one point of the space, e.g. ``"dp=2,pp=2,schedule=1f1b"``.

    Axes left out take the defaults of :func:`autopar.search.space.named.point_of`.

    Raises:
        InputError: The specification is outside the space.
        InfeasibleError: No stage boundaries fit in memory.
    """
    options = (options or SearchOptions()).resolved(cluster)
    model = CostModel(profile, cluster, options.precision)
    batch = options.batch_for(profile, cluster.device_count)
    point = (
        spec if isinstance(spec, Point) else point_of(parse_spec(spec), profile, cluster, batch)
    )
    return solve_point(point, model, options)


def solve_point(point: Point, model: CostModel, options: SearchOptions) -> RankedPlan:
    """The best stage boundaries of a point.

    Raises:
        InputError: A device has no time for the precision.
        InfeasibleError: No boundaries fit in memory.
    """
    for device_id in range(point.world):
        reason = model.compute.why_not(model.cluster.device(device_id))
        if reason is not None:
            raise InputError(reason, hint="choose another device")
    goal = goal_for(point, model, options)
    found = PartitionSearch(goal=goal).solve()
    if found.cuts is None:
        rank, needed = goal.tightest(equal_blocks(len(model.profile.blocks), point.stages))
        raise InfeasibleError(
            f"no stage boundaries fit: about {format_bytes(needed)} needed on pipeline rank "
            f"{rank}, {format_bytes(goal.limit(rank))} available",
            hint="use recompute=full, a smaller microbatch_size or more pipeline ranks",
        )
    return rank_plan(point, found.cuts, model, options, found.levels)


MANY = 20_000
"""Points beyond which :func:`spread` looks at the best variant of each group only."""


def spread(
    profile: GraphProfile,
    cluster: Cluster,
    options: SearchOptions | None = None,
    count: int = 8,
) -> list[RankedPlan]:
    """Feasible plans from the best to the worst, evenly spaced in the ranking of points.

    Points are ranked by their bound; each chosen one gets its best boundaries, and where none fit
    in memory the next point takes its place. Plans come in the order of their step time.

    Raises:
        InputError: Bad options.
        InfeasibleError: No plan fits.
    """
    options = (options or SearchOptions()).resolved(cluster)
    model = CostModel(profile, cluster, options.precision)
    ranked = ranked_points(model, options)
    last = len(ranked) - 1
    wanted = sorted({round(last * i / max(1, count - 1)) for i in range(count)})
    plans: dict[int, RankedPlan] = {}
    for position in wanted if ranked else []:
        for nearby in range(position, min(position + SEARCH_AROUND, last + 1)):
            if nearby in plans:
                continue
            try:
                plans[nearby] = solve_point(ranked[nearby], model, options)
                break
            except InfeasibleError:
                continue
    if not plans:
        raise InfeasibleError("no plan fits in memory", hint="raise --max-memory")
    return sorted(plans.values(), key=lambda item: item.price.step_time_s.value)


SEARCH_AROUND = 25
"""Points tried from a wanted position on until one fits."""


def ranked_points(model: CostModel, options: SearchOptions) -> list[Point]:
    """Points by rising bound, those left out that memory cannot hold."""
    space = build_space(model.profile, model.cluster, options)
    quick = QuickBounds(model, options)
    _, reasons = quick.groups(space.columns)
    groups = [g for g, reason in zip(space.groups, reasons, strict=True) if reason is None]
    ranked: list[tuple[float, int, Point]] = []
    best_only = space.priceable > MANY
    for group, (bounds, misfits) in zip(groups, quick.variants(groups), strict=True):
        open_ = np.flatnonzero(group.variants.valid & ~misfits).tolist()
        if best_only and open_:
            open_ = [min(open_, key=lambda i: float(bounds[i]))]
        for index in open_:
            point = group.point(group.variants.table.variants[index])
            ranked.append((float(bounds[index]), len(ranked), point))
    ranked.sort()
    return [point for _, _, point in ranked]
