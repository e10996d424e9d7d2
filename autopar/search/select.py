"""Specific plans: one that a specification names, or several spread over the ranking."""

from __future__ import annotations

import math
from collections.abc import Mapping

from autopar.cluster import Cluster
from autopar.core.errors import InfeasibleError, InputError
from autopar.core.units import format_bytes
from autopar.cost import CostModel
from autopar.graph import GraphProfile
from autopar.results import RankedPlan
from autopar.search.goal import Goal
from autopar.search.options import SearchOptions
from autopar.search.partition import PartitionSearch, equal_blocks
from autopar.search.plans import layout_for, rank_plan
from autopar.search.space import Point, build_space, point_of
from autopar.search.spec import parse_spec


def plan_for(
    profile: GraphProfile,
    cluster: Cluster,
    spec: str | Mapping[str, int | str] | Point,
    options: SearchOptions | None = None,
) -> RankedPlan:
    """The best boundaries for one point of the space, e.g. ``"dp=2,pp=2,schedule=1f1b"``.

    Axes left out take the defaults of :func:`autopar.search.space.point_of`.

    Raises:
        InputError: The specification is outside the space.
        InfeasibleError: No stage boundaries fit in memory.
    """
    options = options or SearchOptions()
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
    goal = Goal(
        layout=layout_for(point, model, options),
        objective=options.objective,
        max_memory_bytes=options.max_memory_bytes,
    )
    found = PartitionSearch(goal=goal).solve()
    if found.cuts is None:
        rank, needed = goal.tightest(equal_blocks(len(model.profile.blocks), point.stages))
        raise InfeasibleError(
            f"no stage boundaries fit: about {format_bytes(needed)} needed on pipeline rank "
            f"{rank}, {format_bytes(goal.limit(rank))} available",
            hint="use recompute=full, a smaller microbatch_size or more pipeline ranks",
        )
    return rank_plan(point, found.cuts, model, options)


def spread(
    profile: GraphProfile,
    cluster: Cluster,
    options: SearchOptions | None = None,
    count: int = 8,
) -> list[RankedPlan]:
    """Feasible plans from the best to the worst, evenly spaced in the ranking of points.

    Points are ranked by their bound; each chosen one gets its best boundaries. Plans come in the
    order of the objective.

    Raises:
        InputError: Bad options.
        InfeasibleError: No plan fits.
    """
    options = options or SearchOptions()
    model = CostModel(profile, cluster, options.precision)
    ranked: list[tuple[float, int, Point]] = []
    space = build_space(profile, cluster, options)
    for index, point in enumerate(space.points):
        devices = {cluster.device(d).name: d for d in range(point.world)}
        if any(model.compute.why_not(cluster.device(d)) for d in devices.values()):
            continue
        goal = Goal(
            layout=layout_for(point, model, options),
            objective=options.objective,
            max_memory_bytes=options.max_memory_bytes,
        )
        bound = PartitionSearch(goal=goal).lower_bound()
        if math.isfinite(bound):
            ranked.append((bound, index, point))
    ranked.sort()
    if not ranked:
        raise InfeasibleError("no plan fits in memory", hint="raise --max-memory")
    last = len(ranked) - 1
    chosen = sorted({round(last * i / max(1, count - 1)) for i in range(count)})
    plans = []
    for position in chosen:
        try:
            plans.append(solve_point(ranked[position][2], model, options))
        except InfeasibleError:
            continue
    return sorted(plans, key=lambda item: item.price.step_time_s.value)
