"""Search on a mixed cluster: every order of its machines, the best plan proved over all."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from autopar.cluster import Cluster
from autopar.core.provenance import provenance
from autopar.core.units import format_seconds
from autopar.cost import CostModel, price
from autopar.graph import GraphProfile
from autopar.results import Certificate, RankedPlan, SearchResult
from autopar.search.explain.baselines import price_baselines
from autopar.search.explain.choice import explain
from autopar.search.mixed_clusters.placement import DeviceOrder, device_orders
from autopar.search.mixed_clusters.uneven import best_uneven_split
from autopar.search.options import SearchOptions
from autopar.search.ordered import Trials, find_in_order, price_all, summary_of_profile
from autopar.search.space.build import build_space
from autopar.search.space.plans import build_plan, rank_plan
from autopar.search.walk.best_first import Walk

PLACEMENT = "Placement."
"""Opens the paragraph about the order of machines."""


@dataclass(kw_only=True)
class _Searched:
    """An order and what its search found.

    Attributes:
        order: The order.
        walk: Over its space, started.
        trials: What was priced, ``None`` when the bound made pricing unnecessary.
    """

    order: DeviceOrder
    walk: Walk
    trials: Trials | None = None

    @property
    def value(self) -> float:
        """Objective of its best priced plan."""
        return min((item.value for item in self.walk.priced), default=math.inf)


def least_objective(profile: GraphProfile, cluster: Cluster, options: SearchOptions) -> float:
    """No plan of the space has a smaller objective; ``inf`` when none can work."""
    fixed = _fixed(profile, cluster, options)
    model = CostModel(profile, cluster, fixed.precision)
    return min(_started(order, model, fixed).walk.least for order in device_orders(cluster))


def _fixed(profile: GraphProfile, cluster: Cluster, options: SearchOptions) -> SearchOptions:
    """Global batch and precision of the whole cluster, so that all orders do the same work."""
    batch = options.batch_for(profile, cluster.device_count)
    return replace(options.resolved(cluster), global_batch=batch)


def _started(order: DeviceOrder, model: CostModel, options: SearchOptions) -> _Searched:
    own = model.on(order.cluster)
    space = build_space(model.profile, order.cluster, options)
    walk = Walk(model=own, options=options, space=space)
    walk.start()
    return _Searched(order=order, walk=walk)


def find_placed(
    profile: GraphProfile, cluster: Cluster, options: SearchOptions, *, relaxations: bool
) -> SearchResult:
    """The best plans over all orders of :func:`~.placement.device_orders`.

    Orders are searched by rising bound, each for what beats the plans of those before; one whose
    bound is not below the best plan is not searched.

    Raises:
        InputError: Unknown axis, value, objective or sync mode.
        InfeasibleError: No plan satisfies the constraints in any order.
    """
    began = time.perf_counter()
    fixed = _fixed(profile, cluster, options)
    model = CostModel(profile, cluster, fixed.precision)
    searched = [_started(order, model, fixed) for order in device_orders(cluster)]
    known: list[float] = []
    for item in sorted(searched, key=lambda each: each.walk.least):
        if item.walk.least < min(known, default=math.inf):
            item.walk.known = tuple(known)
            item.trials = price_all(item.walk)
            known += [priced.value for priced in item.walk.priced]
    if not known:
        return find_in_order(profile, cluster, fixed, relaxations=relaxations)
    searched.sort(key=lambda each: each.value)
    return _joined(model, fixed, searched, began)


def _joined(
    model: CostModel, options: SearchOptions, searched: Sequence[_Searched], began: float
) -> SearchResult:
    """One result for the whole cluster from the orders, the one with the best plan first."""
    profile, cluster = model.profile, model.cluster
    top = _top(searched, options, model)
    baselines = price_baselines(model, options, options.batch_for(profile, cluster.device_count))
    certificate = _certificate(searched)
    words = explain(top, baselines, certificate, options)
    placement = placement_words(_steps(searched), len(searched))
    if options.objective == "time" and (uneven := best_uneven_split(model, options)) is not None:
        placement += " " + uneven.words(model, top[0].price.step_time_s.value)
    trials = searched[0].trials
    assert trials is not None  # its best plan was priced
    return SearchResult(
        best=top[0],
        top=top,
        baselines=baselines,
        certificate=certificate,
        search_time_s=time.perf_counter() - began,
        objective=options.objective,
        explanation=(words[0], placement, *words[1:]),
        history=tuple(_history(searched)),
        warnings=top[0].price.assumptions,
        profile=summary_of_profile(profile),
        cluster={"name": cluster.name, "devices": cluster.device_count, "hash": cluster.hash},
        study_name=trials.study_name,
        provenance=provenance(),
        open_study=trials.open_study,
    )


def _top(
    searched: Sequence[_Searched], options: SearchOptions, model: CostModel
) -> tuple[RankedPlan, ...]:
    """The best plans of all orders, on the devices of the whole cluster, none twice."""
    ranked = [(each, item) for each in searched for item in each.walk.priced]
    ranked.sort(key=lambda pair: pair[1].value)
    top: dict[str, RankedPlan] = {}
    for each, item in ranked:
        own = build_plan(item.point, item.cuts, each.walk.model, options, item.levels)
        placement = each.order.placed(own.placement)
        plan = replace(own, placement=placement, cluster=model.cluster.name)
        if plan.hash not in top:
            cost = price(plan, model.profile, model.cluster, model)
            top[plan.hash] = RankedPlan(plan=plan.with_predicted(cost.to_dict()), price=cost)
        if len(top) == options.top:
            break
    return tuple(top.values())


def _certificate(searched: Sequence[_Searched]) -> Certificate:
    """Counts of all orders together; the gap is that of the least proved one."""
    rejected: Counter[str] = Counter()
    parts = [item.walk.certificate() for item in searched]
    for part in parts:
        rejected.update(part.rejected)
    best = searched[0].value
    unexplored = min(item.walk.unexplored for item in searched)
    gap = max(0.0, (best - unexplored) / best) if best > 0 else 0.0
    return Certificate(
        space=sum(part.space for part in parts),
        rejected=dict(sorted(rejected.items())),
        bounded=sum(part.bounded for part in parts),
        priced=sum(part.priced for part in parts),
        gap=gap if gap > 1e-9 else 0.0,
        partitions_priced=sum(part.partitions_priced for part in parts),
    )


def _history(searched: Iterable[_Searched]) -> Iterable[tuple[int, float, float, str]]:
    """The priced points of all orders as one history."""
    best, number = math.inf, 0
    for item in searched:
        for _, value, _, name in item.trials.history if item.trials is not None else ():
            best = min(best, value)
            yield number, value, best, name
            number += 1


def _steps(searched: Sequence[_Searched]) -> list[tuple[DeviceOrder, float]]:
    """Orders with a plan, the best first, and the step seconds of their best plans."""
    found = []
    for item in searched:
        if item.walk.priced:
            best = min(item.walk.priced, key=lambda priced: priced.value)
            model, options = item.walk.model, item.walk.options
            ranked = rank_plan(best.point, best.cuts, model, options, best.levels)
            found.append((item.order, ranked.price.step_time_s.value))
    return found


def placement_words(found: Sequence[tuple[DeviceOrder, float]], orders: int) -> str:
    """Which machines hold the first stages, and what the next order would take.

    Args:
        found: Orders with a plan, the best first, and the step seconds of their best plans.
        orders: Orders in the space.
    """
    order, here = found[0]
    text = f"{PLACEMENT} Ranks run over {order.words}, the best of {orders} orders of machines"
    for other, there in found[1:]:
        if other.words != order.words:
            return (
                f"{text}; {other.words} comes next with {format_seconds(there)} against "
                f"{format_seconds(here)} per step."
            )
    return f"{text}; the others cannot be better."
