"""Where the choice flips: the value of one quantity from which on another strategy wins."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

from autopar.cluster import Cluster
from autopar.core.errors import InfeasibleError, InputError
from autopar.cost import CostModel, price
from autopar.graph import GraphProfile
from autopar.plans import Plan
from autopar.results import PlanPrice, RankedPlan, SearchResult
from autopar.search.change import scaled_cluster
from autopar.search.driver import find
from autopar.search.goal import value_of
from autopar.search.options import SearchOptions
from autopar.search.parts import strategy_name
from autopar.search.quantities import QUANTITIES

LIMIT = 16.0
"""Scales from 1/16 to 16 are looked at."""
TOLERANCE = 0.02
"""Relative width to which a flip is located."""
TIE = 1e-9
"""Relative differences below this are no difference."""
ROUNDS = 8
"""Searches that may correct a flip before it is reported unconfirmed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BreakEven:
    """A flip of the choice.

    Attributes:
        quantity: Name in :data:`autopar.search.quantities.QUANTITIES`.
        scale: Factor on the quantity at the flip; below 1 when it flips downwards.
        now: The quantity now, SI units.
        at: The quantity at the flip, SI units.
        winner: What wins beyond the flip, priced there; ``None`` when nothing fits any more.
        confirmed: True when full searches just before and at the flip agree with it; else it is
            the flip among the plans that were known.
    """

    quantity: str
    scale: float
    now: float
    at: float
    winner: RankedPlan | None
    confirmed: bool

    @property
    def text(self) -> str:
        """One sentence."""
        show = QUANTITIES[self.quantity].show
        side = "below" if self.scale < 1 else "above"
        what = (
            f"{strategy_name(self.winner.plan)} wins ({self.winner.name})"
            if self.winner is not None
            else "nothing fits"
        )
        text = (
            f"{QUANTITIES[self.quantity].title}: {side} {show(self.at)} "
            f"(x{self.scale:.2g} of {show(self.now)}) {what}"
        )
        return text if self.confirmed else text + ", among the plans shown"


def break_even(
    result: SearchResult,
    profile: GraphProfile,
    cluster: Cluster,
    quantity: str,
    options: SearchOptions | None = None,
    *,
    limit: float = LIMIT,
    searches: bool = True,
) -> tuple[BreakEven, ...]:
    """The nearest flips of the chosen strategy when one quantity falls or rises.

    A full search at ``1 / limit`` and ``limit`` says whether the choice flips at all; the place
    is found by bisection over the known plans, priced again at each scale, and confirmed by a
    full search just before it. A search that finds a plan not yet known there adds it, and the
    bisection starts again nearer to the cluster as it is.

    Args:
        result: The search in question.
        profile: What is trained.
        cluster: Where.
        quantity: Name in :data:`autopar.search.quantities.QUANTITIES`.
        options: Of the search in question.
        limit: Largest factor looked at.
        searches: Search again on changed clusters; without it only the plans of the result are
            compared, which takes no time and may miss a plan that wins earlier.

    Returns:
        None, one or two flips; downwards first.

    Raises:
        InputError: Unknown quantity, or the cluster cannot take the change.
    """
    hunt = _hunt(result, profile, cluster, quantity, options)
    if quantity == "devices":
        found = [hunt.by_doubling(limit, up=up) for up in (False, True)] if searches else []
    elif searches:
        found = [hunt.flip(edge) for edge in (1 / limit, limit)]
    else:
        found = [hunt.known_flip(edge) for edge in (1 / limit, limit)]
    return tuple(item for item in found if item is not None)


def flip_until(
    result: SearchResult,
    profile: GraphProfile,
    cluster: Cluster,
    quantity: str,
    edge: float,
    options: SearchOptions | None = None,
) -> BreakEven | None:
    """The nearest flip on the way from the cluster as it is to ``edge`` times a quantity.

    Raises:
        InputError: Unknown quantity, or the cluster cannot take the change.
    """
    return _hunt(result, profile, cluster, quantity, options).flip(edge)


def _hunt(
    result: SearchResult,
    profile: GraphProfile,
    cluster: Cluster,
    quantity: str,
    options: SearchOptions | None,
) -> _Hunt:
    asked = options or SearchOptions(objective=result.objective)
    batch = asked.batch_for(profile, cluster.device_count)
    return _Hunt(
        result=result,
        profile=profile,
        cluster=cluster,
        quantity=quantity,
        options=replace(asked, global_batch=batch, top=1, storage=None),
    )


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

    def __post_init__(self) -> None:
        baselines = (b for b in self.result.baselines.values() if isinstance(b, RankedPlan))
        self.learn(item.plan for item in (*self.result.top, *baselines))
        self.now = QUANTITIES[self.quantity].read(self.cluster)
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
        if scale not in self.models:
            changed = scaled_cluster(self.cluster, self.quantity, scale)
            self.models[scale] = CostModel(self.profile, changed, plan.precision)
        return price(plan, self.profile, self.models[scale].cluster, self.models[scale])

    def rival(self, scale: float) -> Plan | None:
        """The known plan of another strategy that beats the chosen strategy at a scale."""
        values = {key: self.value(plan, scale) for key, plan in self.known.items()}
        if all(math.isinf(value) for value in values.values()):
            return None
        mine = min(values[key] for key, plan in self.known.items() if self.own(plan))
        winner = min(values, key=lambda key: values[key])
        return self.known[winner] if values[winner] < mine * (1 - TIE) else None

    def flip(self, edge: float) -> BreakEven | None:
        """The flip nearest to scale 1 between 1 and ``edge``."""
        winner = self.search(edge)
        if winner is None:
            return self.exhausted(edge)
        self.learn([winner.plan])
        far = edge
        for _ in range(ROUNDS):
            if self.rival(far) is None:
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

    def known_flip(self, edge: float) -> BreakEven | None:
        """The flip nearest to scale 1 among the known plans."""
        if self.rival(edge) is None:
            return None
        scale = bisect(lambda s: self.rival(s) is not None, 1.0, edge)
        return self.report(scale, confirmed=False)

    def own(self, plan: Plan) -> bool:
        """True for plans of the chosen strategy."""
        return strategy_name(plan) == self.strategy

    def new(self, plan: Plan) -> bool:
        """True for plans that are not priced at every scale yet."""
        return plan.hash not in self.known

    def exhausted(self, edge: float) -> BreakEven | None:
        """Where nothing fits at the edge: the flip before that, else the end of what fits."""
        end = bisect(lambda s: self.search(s) is None, 1.0, edge)
        survivor = self.search(nearer(end))
        if survivor is not None and not self.own(survivor.plan):
            return self.flip(nearer(end))
        return BreakEven(
            quantity=self.quantity,
            scale=end,
            now=self.now,
            at=self.now * end,
            winner=None,
            confirmed=True,
        )

    def report(self, scale: float, *, confirmed: bool) -> BreakEven | None:
        """The flip at a scale, with what wins there."""
        plan = self.rival(scale)
        if plan is None:
            return None
        return BreakEven(
            quantity=self.quantity,
            scale=scale,
            now=self.now,
            at=self.now * scale,
            winner=RankedPlan(plan=plan, price=self.price(plan, scale)),
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
                return BreakEven(
                    quantity=self.quantity,
                    scale=scale,
                    now=self.now,
                    at=self.now * scale,
                    winner=best,
                    confirmed=True,
                )
            factor *= 2
        return None


def axes_used(plan: Plan) -> tuple[str, ...]:
    """Mesh axes of a plan that are larger than 1."""
    return tuple(axis for axis, degree in plan.mesh.to_dict().items() if degree > 1)


def nearer(scale: float) -> float:
    """A scale moved towards 1 by the tolerance."""
    distance = math.log(scale)
    return math.exp(math.copysign(max(0.0, abs(distance) - TOLERANCE), distance))


def bisect(holds: Callable[[float], bool], near: float, far: float) -> float:
    """The scale nearest to ``near`` at which a condition holds that holds at ``far``.

    Bisection on the logarithm, to :data:`TOLERANCE`; exact if the condition, once true, stays so.
    """
    low, high = math.log(near), math.log(far)
    while abs(high - low) > TOLERANCE / 2:
        middle = (low + high) / 2
        low, high = (low, middle) if holds(math.exp(middle)) else (middle, high)
    return math.exp(high)
