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
from autopar.plans import Plan
from autopar.results import Certificate, RankedPlan, SearchResult
from autopar.search.explain.baselines import price_baselines
from autopar.search.explain.choice import explain, margin_words
from autopar.search.explain.machines_used import idle_words, used_words
from autopar.search.mixed_clusters.placement import DeviceOrder, device_orders
from autopar.search.mixed_clusters.uneven import best_uneven_split
from autopar.search.options import SearchOptions
from autopar.search.ordered import Trials, find_in_order, price_all, summary_of_profile
from autopar.search.space.build import build_space
from autopar.search.space.plans import build_plan
from autopar.search.walk.best_first import Priced, Walk

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
    bests = _best_of_orders(searched, model)
    placement = placement_words(bests, cluster, len(searched), options.objective)
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
        plan = _placed(each, item, model)
        if plan.hash not in top:
            top[plan.hash] = _ranked(plan, model)
        if len(top) == options.top:
            break
    return tuple(top.values())


def _placed(searched: _Searched, item: Priced, model: CostModel) -> Plan:
    """A plan of one order, on the devices of the whole cluster."""
    walk = searched.walk
    own = build_plan(item.point, item.cuts, walk.model, walk.options, item.levels)
    placement = searched.order.placed(own.placement)
    return replace(own, placement=placement, cluster=model.cluster.name)


def _ranked(plan: Plan, model: CostModel) -> RankedPlan:
    cost = price(plan, model.profile, model.cluster, model)
    return RankedPlan(plan=plan.with_predicted(cost.to_dict()), price=cost)


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


def _best_of_orders(searched: Sequence[_Searched], model: CostModel) -> list[RankedPlan]:
    """The best plan of every order that has one, the best first; equal plans once.

    Orders that begin with the same machines give the same plan on the same devices where it needs
    no more of them.
    """
    found: dict[str, RankedPlan] = {}
    for each in searched:
        if each.walk.priced:
            best = min(each.walk.priced, key=lambda priced: priced.value)
            plan = _placed(each, best, model)
            if plan.hash not in found:
                found[plan.hash] = _ranked(plan, model)
    return list(found.values())


def placement_words(
    found: Sequence[RankedPlan], cluster: Cluster, orders: int, objective: str
) -> str:
    """Which machines hold the ranks, which none, and what the best other order takes.

    Args:
        found: Different best plans of orders, the best first.
        cluster: All machines.
        orders: Orders in the space.
        objective: What was minimised.
    """
    best = found[0]
    words = used_words(best.plan, cluster)
    text = f"{PLACEMENT} Ranks run over {words}, the best of {orders} orders of machines"
    if idle := idle_words(best.plan, cluster):
        text += f"; {idle} stay{'s' if idle.startswith('1 node ') else ''} idle"
    for other in found[1:]:
        if used_words(other.plan, cluster) != words:
            return (
                f"{text}; of the others that had to be priced the best is "
                f"{used_words(other.plan, cluster)} with {other.name}, "
                f"{format_seconds(other.price.step_time_s.value)} per step, "
                f"{margin_words(best, other, objective)}."
            )
    return f"{text}; the others cannot be better."
