"""Where the choice flips: the value of one quantity from which on another strategy wins."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Literal

from autopar.cluster import Cluster
from autopar.core.errors import InfeasibleError, InputError
from autopar.core.registry import did_you_mean
from autopar.cost import CostModel, price
from autopar.graph import GraphProfile
from autopar.plans import Plan
from autopar.results import Certificate, PlanPrice, RankedPlan, SearchResult
from autopar.search.driver import find
from autopar.search.explain.change import scaled_cluster
from autopar.search.explain.infeasible import least_memory
from autopar.search.explain.machines_used import machines_used
from autopar.search.explain.parts import strategy_name
from autopar.search.explain.quantities import QUANTITIES
from autopar.search.options import SearchOptions
from autopar.search.questions.flips import TOLERANCE, BreakEven, axes_used, bisect, nearer
from autopar.search.stages.goal import value_of

LIMIT = 16.0
"""Scales from 1/16 to 16 are looked at."""
MEMORY_TOLERANCE = 0.05
"""Relative width to which a flip by memory is located, where every step is a search."""
Effort = Literal["full", "ends", "known"]
"""How often to search again: around every flip, at the ends of the range only, or not at all."""
SEARCHED_SPACE = 4_000
"""Points up to which a space is searched again around every flip."""
ENDS_SPACE = 1_000_000
"""Points up to which a space is searched again at the ends of the range ..."""
ENDS_PARTITIONS = 1_000
"""... when the search that is explained simulated no more stage partitions than this."""
MATERIAL = 0.01
"""A strategy that is ahead by less at the far end does not count as a flip."""
TIE = 1e-9
"""Relative differences below this are no difference."""
ROUNDS = 4
"""Pairs of searches that may correct a flip before it is reported unconfirmed."""


def break_even(
    result: SearchResult,
    profile: GraphProfile,
    cluster: Cluster,
    quantity: str,
    options: SearchOptions | None = None,
    *,
    limit: float = LIMIT,
    effort: Effort = "full",
) -> tuple[BreakEven, ...]:
    """The nearest flips of the chosen strategy when one quantity falls or rises.

    A full search at ``1 / limit`` and ``limit`` says whether the choice flips at all; the place
    is found by bisection over the known plans, priced again at each scale, and confirmed by
    full searches at it and just before it. A search that finds a plan not yet known adds it, and
    the bisection starts again. Memory decides which plans are possible, not how long they take,
    so there the bisection searches at every step.

    Args:
        result: The search in question.
        profile: What is trained.
        cluster: Where.
        quantity: Name in :data:`autopar.search.explain.quantities.QUANTITIES`.
        options: Of the search in question.
        limit: Largest factor looked at.
        effort: ``full`` as above; ``ends`` searches at the limits only and compares what is known
            between them; ``known`` compares the plans of the result. The cheaper, the likelier
            that a plan which wins earlier is missed.

    Returns:
        None, one or two flips; downwards first.

    Raises:
        InputError: Unknown quantity, or the cluster cannot take the change.
    """
    hunt = _hunt(result, profile, cluster, quantity, options)
    if quantity == "devices":
        full = effort == "full"
        found = [hunt.by_doubling(limit, up=up) for up in (False, True)] if full else []
    else:
        found = [hunt.look(edge, effort) for edge in (1 / limit, limit)]
    return tuple(item for item in found if item is not None)


def flip_until(
    result: SearchResult,
    profile: GraphProfile,
    cluster: Cluster,
    quantity: str,
    edge: float,
    options: SearchOptions | None = None,
    *,
    known: Iterable[Plan] = (),
    effort: Effort = "full",
) -> BreakEven | None:
    """The nearest flip on the way from the cluster as it is to ``edge`` times a quantity.

    Args:
        result: The search in question.
        profile: What is trained.
        cluster: Where.
        quantity: Name in :data:`autopar.search.explain.quantities.QUANTITIES`.
        edge: Factor at which to stop looking.
        options: Of the search in question.
        known: Plans to compare beside those of the result.
        effort: As in :func:`break_even`.

    Raises:
        InputError: Unknown quantity, or the cluster cannot take the change.
    """
    hunt = _hunt(result, profile, cluster, quantity, options)
    hunt.learn(known)
    return hunt.look(edge, effort)


def _hunt(
    result: SearchResult,
    profile: GraphProfile,
    cluster: Cluster,
    quantity: str,
    options: SearchOptions | None,
) -> _Hunt:
    if quantity not in QUANTITIES:
        raise InputError(
            f"cannot change '{quantity}'", hint=did_you_mean(quantity, list(QUANTITIES))
        )
    asked = (options or SearchOptions(objective=result.objective)).resolved(cluster)
    batch = asked.batch_for(profile, cluster.device_count)
    return _Hunt(
        result=result,
        profile=profile,
        cluster=cluster,
        quantity=quantity,
        options=replace(asked, global_batch=batch, top=1, storage=None),
    )


def effort_for(certificate: Certificate) -> Effort:
    """What a space is worth, by how long its search took: the same on every machine."""
    if certificate.space <= SEARCHED_SPACE:
        return "full"
    quick = certificate.partitions_priced <= ENDS_PARTITIONS
    return "ends" if certificate.space <= ENDS_SPACE and quick else "known"


@dataclass(kw_only=True)
class _Hunt:
    """State of one break-even question."""

    result: SearchResult
    profile: GraphProfile
    cluster: Cluster
    quantity: str
    options: SearchOptions
    known: dict[str, Plan] = field(default_factory=dict)
    models: dict[float, CostModel] = field(default_factory=dict)
    prices: dict[tuple[str, float], PlanPrice] = field(default_factory=dict)

    def __post_init__(self) -> None:
        baselines = (b for b in self.result.baselines.values() if isinstance(b, RankedPlan))
        self.learn(item.plan for item in (*self.result.top, *baselines))
        plan = self.result.best.plan
        where = self.cluster if self.quantity == "devices" else machines_used(self.cluster, plan)
        self.now = QUANTITIES[self.quantity].read(where)
        self.strategy = strategy_name(self.result.best.plan)

    def learn(self, plans: Iterable[Plan]) -> None:
        """Add plans to those that are priced at every scale."""
        for plan in plans:
            self.known.setdefault(plan.hash, plan)

    def search(self, scale: float) -> RankedPlan | None:
        """The best plan at a scale, by a full search; ``None`` when nothing fits."""
        changed = scaled_cluster(self.cluster, self.quantity, scale)
        try:
            return find(self.profile, changed, self.options, relaxations=False).best
        except InfeasibleError:
            return None

    def value(self, plan: Plan, scale: float) -> float:
        """Objective of a known plan at a scale; ``inf`` when it does not fit."""
        cost = self.price(plan, scale)
        room = min(cost.capacity_bytes, self.options.max_memory_bytes or math.inf)
        if cost.peak_memory_bytes.high > room:
            return math.inf
        return value_of(cost, self.options.objective)

    def price(self, plan: Plan, scale: float) -> PlanPrice:
        """A known plan at a scale."""
        if self.quantity == "memory":  # decides what fits, not how long it takes
            cost = self.price_on(plan, 1.0)
            return replace(cost, capacity_bytes=cost.capacity_bytes * scale)
        return self.price_on(plan, scale)

    def price_on(self, plan: Plan, scale: float) -> PlanPrice:
        """A known plan on the changed cluster."""
        key = (plan.hash, scale)
        if key not in self.prices:
            if scale not in self.models:
                changed = scaled_cluster(self.cluster, self.quantity, scale)
                self.models[scale] = CostModel(self.profile, changed, plan.precision)
            model = self.models[scale]
            self.prices[key] = price(plan, self.profile, model.cluster, model)
        return self.prices[key]

    def rival(self, scale: float, margin: float = TIE) -> Plan | None:
        """The known plan of another strategy that beats the chosen strategy at a scale.

        Args:
            scale: Factor on the quantity.
            margin: Relative advantage it needs.
        """
        values = {key: self.value(plan, scale) for key, plan in self.known.items()}
        if all(math.isinf(value) for value in values.values()):
            return None
        mine = min(values[key] for key, plan in self.known.items() if self.own(plan))
        winner = min(values, key=lambda key: values[key])
        return self.known[winner] if values[winner] < mine * (1 - margin) else None

    def look(self, edge: float, effort: Effort) -> BreakEven | None:
        """The flip nearest to scale 1 between 1 and ``edge``, with some effort."""
        if effort == "full":
            return self.flip(edge)
        if effort == "ends" and (winner := self.search(edge)) is not None:
            self.learn([winner.plan])
        return self.known_flip(edge)

    def flip(self, edge: float) -> BreakEven | None:
        """The flip nearest to scale 1 between 1 and ``edge``."""
        if self.quantity == "memory":
            return self.memory_flip(edge)
        winner = self.search(edge)
        if winner is None:
            return self.report(edge, confirmed=False)
        self.learn([winner.plan])
        far = edge
        for _ in range(ROUNDS):
            if self.rival(far, MATERIAL if far == edge else TIE) is None:
                return None
            scale = bisect(lambda s: self.rival(s) is not None, 1.0, far)
            beyond, before = self.search(scale), self.search(nearer(scale))
            if beyond is not None and self.own(beyond.plan) and self.new(beyond.plan):
                self.learn([beyond.plan])  # the chosen strategy adapts and lasts longer
            elif before is not None and not self.own(before.plan) and self.new(before.plan):
                self.learn([before.plan])  # an unknown plan wins earlier
                far = nearer(scale)
            else:
                sure = before is not None and self.own(before.plan)
                return self.report(scale, confirmed=sure)
        return self.report(far, confirmed=False)

    def memory_flip(self, edge: float) -> BreakEven | None:
        """The flip by memory: it decides what fits, so every step of the bisection searches."""
        far = max(edge, self.least_scale()) if edge < 1 else edge
        found: dict[float, RankedPlan | None] = {far: self.search(far)}
        winner = found[far]
        if winner is not None and self.own(winner.plan):
            # the chosen strategy needs least of all: below this nothing fits
            return self._even(far, None, confirmed=True) if edge < far < 1 else None
        if winner is not None and far > 1:
            objective = self.options.objective
            gained = value_of(winner.price, objective) / value_of(
                self.result.best.price, objective
            )
            if gained > 1 - MATERIAL:
                return None
            # more than this it does not need
            need = winner.price.peak_memory_bytes.high / winner.price.capacity_bytes
            found[far * need] = winner
            far = max(far * need, 1.0)

        def flips(scale: float) -> bool:
            found[scale] = self.search(scale)
            plan = found[scale]
            return plan is None or not self.own(plan.plan)

        scale = bisect(flips, 1.0, far, MEMORY_TOLERANCE)
        return self._even(scale, found.get(scale, winner), confirmed=True)

    def least_scale(self) -> float:
        """The memory, as a share of what there is, with which the smallest plan just fits."""
        model = CostModel(self.profile, self.cluster, self.options.precision)
        smallest = least_memory(model, self.options)
        if smallest is None:
            return 1.0
        need = smallest.price.peak_memory_bytes.high / smallest.price.capacity_bytes
        return min(1.0, need * (1 + TOLERANCE))

    def known_flip(self, edge: float) -> BreakEven | None:
        """The flip nearest to scale 1 among the known plans."""
        if self.rival(edge, MATERIAL) is None:
            return None
        scale = bisect(lambda s: self.rival(s) is not None, 1.0, edge)
        return self.report(scale, confirmed=False)

    def own(self, plan: Plan) -> bool:
        """True for plans of the chosen strategy."""
        return strategy_name(plan) == self.strategy

    def new(self, plan: Plan) -> bool:
        """True for plans that are not priced at every scale yet."""
        return plan.hash not in self.known

    def report(self, scale: float, *, confirmed: bool) -> BreakEven | None:
        """The flip at a scale, with the known plan that wins there."""
        plan = self.rival(scale)
        if plan is None:
            return None
        ranked = RankedPlan(plan=plan, price=self.price(plan, scale))
        return self._even(scale, ranked, confirmed=confirmed)

    def _even(self, scale: float, winner: RankedPlan | None, *, confirmed: bool) -> BreakEven:
        return BreakEven(
            quantity=self.quantity,
            scale=scale,
            now=self.now,
            at=self.now * scale,
            winner=winner,
            confirmed=confirmed,
        )

    def by_doubling(self, limit: float, *, up: bool) -> BreakEven | None:
        """First doubling or halving of the devices at which other axes are used."""
        factor = 2.0
        kind = axes_used(self.result.best.plan)
        while factor <= limit:
            scale = factor if up else 1 / factor
            try:
                best = self.search(scale)
            except InputError:  # not whole nodes, or a mixed cluster
                return None
            if best is None or axes_used(best.plan) != kind:
                return self._even(scale, best, confirmed=True)
            factor *= 2
        return None
