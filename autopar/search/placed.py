"""Search on a mixed cluster: every order of its machines, the best plan proved over all."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from autopar.cluster import Cluster
from autopar.core.errors import InfeasibleError
from autopar.core.provenance import provenance
from autopar.core.units import format_seconds
from autopar.cost import CostModel, price
from autopar.graph import GraphProfile
from autopar.results import Certificate, RankedPlan, SearchResult
from autopar.search.baselines import price_baselines
from autopar.search.explain import explain
from autopar.search.goal import value_of
from autopar.search.options import SearchOptions
from autopar.search.placement import DeviceOrder, device_orders
from autopar.search.quick import QuickBounds
from autopar.search.space import build_space
from autopar.search.uneven import best_uneven_split

PLACEMENT = "Placement."
"""Opens the paragraph about the order of machines."""
NO_PLAN = "no plan fits on these machines in this order"


@dataclass(frozen=True, kw_only=True)
class _Searched:
    """An order and what its search found.

    Attributes:
        order: The order.
        bound: No plan of the order has a smaller objective.
        result: The search, ``None`` when nothing fits or the bound made it unnecessary.
        certificate: Of the search, or what stands for it.
    """

    order: DeviceOrder
    bound: float
    result: SearchResult | None
    certificate: Certificate


def least_objective(profile: GraphProfile, cluster: Cluster, options: SearchOptions) -> float:
    """No plan of the space has a smaller objective; ``inf`` when none can work."""
    fixed = _fixed(profile, cluster, options)
    return min(_least(profile, order.cluster, fixed) for order in device_orders(cluster))


def _fixed(profile: GraphProfile, cluster: Cluster, options: SearchOptions) -> SearchOptions:
    """Global batch and precision of the whole cluster, so that all orders do the same work."""
    batch = options.batch_for(profile, cluster.device_count)
    return replace(options.resolved(cluster), global_batch=batch)


def _least(profile: GraphProfile, cluster: Cluster, options: SearchOptions) -> float:
    model = CostModel(profile, cluster, options.precision)
    space = build_space(profile, cluster, options, model.strategies)
    bounds, reasons = QuickBounds(model, options).groups(space.groups)
    left = [float(b) for b, why in zip(bounds, reasons, strict=True) if why is None]
    return min(left, default=math.inf)


def find_placed(
    profile: GraphProfile, cluster: Cluster, options: SearchOptions, *, relaxations: bool
) -> SearchResult:
    """The best plans over all orders of :func:`autopar.search.placement.device_orders`.

    Orders are searched by rising bound; one whose bound is not below the best plan is not.

    Raises:
        InputError: Unknown axis, value, objective or sync mode.
        InfeasibleError: No plan satisfies the constraints in any order.
    """
    from autopar.search.driver import find_in_order  # it dispatches to this module

    began = time.perf_counter()
    fixed = _fixed(profile, cluster, options)
    bounds = [
        (_least(profile, order.cluster, fixed), index, order)
        for index, order in enumerate(device_orders(cluster))
    ]
    searched: list[_Searched] = []
    best = math.inf
    for bound, _, order in sorted(bounds, key=lambda item: item[:2]):
        result = None
        if bound < best:
            try:
                result = find_in_order(profile, order.cluster, fixed, relaxations=False)
                best = min(best, value_of(result.best.price, options.objective))
            except InfeasibleError:
                result = None
        certificate = (
            result.certificate
            if result is not None
            else _unsearched(profile, order.cluster, fixed, bound >= best)
        )
        searched.append(
            _Searched(order=order, bound=bound, result=result, certificate=certificate)
        )
    if not math.isfinite(best):
        return find_in_order(profile, cluster, fixed, relaxations=relaxations)
    return _joined(profile, cluster, fixed, searched, time.perf_counter() - began)


def _unsearched(
    profile: GraphProfile, cluster: Cluster, options: SearchOptions, bounded: bool
) -> Certificate:
    """Points of an order that was bounded away as a whole, or on which nothing fits."""
    space = build_space(profile, cluster, options)
    rejected = Counter(space.rejected)
    if not bounded:
        rejected[NO_PLAN] += space.priceable
    return Certificate(
        space=space.size,
        rejected=dict(rejected),
        bounded=space.priceable if bounded else 0,
        priced=0,
        gap=0.0,
    )


def _joined(
    profile: GraphProfile,
    cluster: Cluster,
    options: SearchOptions,
    searched: Sequence[_Searched],
    search_time_s: float,
) -> SearchResult:
    """One result for the whole cluster from those of the orders."""
    model = CostModel(profile, cluster, options.precision)
    found = [(item.order, item.result) for item in searched if item.result is not None]
    found.sort(key=lambda pair: value_of(pair[1].best.price, options.objective))
    top = _top(found, options, model)
    baselines = price_baselines(model, options, options.batch_for(profile, cluster.device_count))
    certificate = _certificate(searched, value_of(top[0].price, options.objective), options)
    best = found[0][1]
    words = explain(top, baselines, certificate, options)
    placement = placement_words(found, len(searched))
    if options.objective == "time" and (uneven := best_uneven_split(model, options)) is not None:
        placement += " " + uneven.words(model, top[0].price.step_time_s.value)
    return replace(
        best,
        best=top[0],
        top=top,
        baselines=baselines,
        certificate=certificate,
        search_time_s=search_time_s,
        explanation=(words[0], placement, *words[1:]),
        history=tuple(_history(result for _, result in found)),
        warnings=top[0].price.assumptions,
        cluster={"name": cluster.name, "devices": cluster.device_count, "hash": cluster.hash},
        provenance=provenance(),
    )


def _top(
    found: Sequence[tuple[DeviceOrder, SearchResult]], options: SearchOptions, model: CostModel
) -> tuple[RankedPlan, ...]:
    """The best plans of all orders, on the devices of the whole cluster, none twice."""
    ranked = [(order, item) for order, result in found for item in result.top]
    ranked.sort(key=lambda pair: value_of(pair[1].price, options.objective))
    top: dict[str, RankedPlan] = {}
    for order, item in ranked:
        placement = order.placed(item.plan.placement)
        plan = replace(item.plan, placement=placement, cluster=model.cluster.name)
        if plan.hash not in top:
            cost = price(plan, model.profile, model.cluster, model)
            top[plan.hash] = RankedPlan(plan=plan.with_predicted(cost.to_dict()), price=cost)
        if len(top) == options.top:
            break
    return tuple(top.values())


def _certificate(
    searched: Sequence[_Searched], best: float, options: SearchOptions
) -> Certificate:
    """Counts of all orders together; the gap is that of the least proved one."""
    rejected: Counter[str] = Counter()
    unexplored = math.inf
    for item in searched:
        rejected.update(item.certificate.rejected)
        if item.result is not None:
            own = value_of(item.result.best.price, options.objective)
            unexplored = min(unexplored, own * (1 - item.certificate.gap))
    gap = max(0.0, (best - unexplored) / best) if best > 0 else 0.0
    parts = [item.certificate for item in searched]
    return Certificate(
        space=sum(part.space for part in parts),
        rejected=dict(sorted(rejected.items())),
        bounded=sum(part.bounded for part in parts),
        priced=sum(part.priced for part in parts),
        gap=gap if gap > 1e-9 else 0.0,
        partitions_priced=sum(part.partitions_priced for part in parts),
    )


def _history(results: Iterable[SearchResult]) -> Iterable[tuple[int, float, float, str]]:
    """The priced points of all orders as one history."""
    best, number = math.inf, 0
    for result in results:
        for _, value, _, name in result.history:
            best = min(best, value)
            yield number, value, best, name
            number += 1


def placement_words(found: Sequence[tuple[DeviceOrder, SearchResult]], orders: int) -> str:
    """Which machines hold the first stages, and what the next order would take."""
    order, result = found[0]
    text = f"{PLACEMENT} Ranks run over {order.words}, the best of {orders} orders of machines"
    for other, next_best in found[1:]:
        if other.words != order.words:
            here, there = (r.best.price.step_time_s.value for r in (result, next_best))
            return (
                f"{text}; {other.words} comes next with {format_seconds(there)} against "
                f"{format_seconds(here)} per step."
            )
    return f"{text}; the others cannot be better."
