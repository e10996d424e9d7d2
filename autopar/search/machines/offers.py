"""Offers: what training on one set of machines takes, and which offer meets what is asked."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from autopar.cluster import Cluster
from autopar.core.errors import InputError
from autopar.core.estimate import Estimate, weakest
from autopar.graph import GraphProfile
from autopar.results import SearchResult

Verdict = Literal["surely", "probably", "not", "unknown"]
"""``surely``: the high end of the range is within the limit; ``probably``: the value is, the high
end is not; ``not``: the value is beyond it; ``unknown``: there is no figure to compare."""


@dataclass(frozen=True, kw_only=True)
class Wishes:
    """What the machines must achieve.

    Attributes:
        samples: Samples to train on; ``None`` for one optimizer step.
        deadline_s: Most seconds it may take.
        budget_usd: Most money it may cost.

    Raises:
        InputError: A figure is not positive.
    """

    samples: int | None = None
    deadline_s: float | None = None
    budget_usd: float | None = None

    def __post_init__(self) -> None:
        for name in ("samples", "deadline_s", "budget_usd"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise InputError(
                    f"{name} is {value}, a positive number is needed", hint=f"correct {name}"
                )

    def steps(self, global_batch: int) -> int:
        """Optimizer steps that see all samples at least once."""
        return 1 if self.samples is None else math.ceil(self.samples / global_batch)


@dataclass(frozen=True, kw_only=True)
class Offer:
    """One set of machines and the best plan on it.

    Attributes:
        cluster: The machines.
        profile: What is trained, as profiled for them.
        steps: Optimizer steps to train.
        least_step_s: No plan on these machines takes a shorter step.
        result: Search for the best plan; ``None`` when there is none or it was not needed.
        reason: Why there is no result.
        skipped: True when a bound made the search unnecessary.
    """

    cluster: Cluster
    profile: GraphProfile
    steps: int
    least_step_s: float
    result: SearchResult | None = None
    reason: str | None = None
    skipped: bool = False

    @property
    def usd_per_s(self) -> float | None:
        """Rent of all machines of the set, used by the plan or not; ``None`` without prices."""
        prices = [
            (group.devices, group.machine.device.usd_per_hour) for group in self.cluster.groups
        ]
        total = 0.0
        for devices, usd in prices:
            if usd is None:
                return None
            total += devices * usd / 3600
        return total

    @property
    def least_total_s(self) -> float:
        """No plan trains faster."""
        return self.least_step_s * self.steps

    @property
    def least_cost_usd(self) -> float | None:
        """No plan trains cheaper; ``None`` without prices."""
        rent = self.usd_per_s
        return None if rent is None else rent * self.least_total_s

    @property
    def step_time_s(self) -> Estimate | None:
        """Step time of the best plan."""
        return None if self.result is None else self.result.best.price.step_time_s

    @property
    def total_s(self) -> Estimate | None:
        """Time of all steps, more of them where the sync mode needs more to the same loss."""
        if self.result is None:
            return None
        price = self.result.best.price
        step, more = price.step_time_s.scaled(self.steps), price.steps_multiplier
        return Estimate(
            value=step.value * more.value,
            low=step.low * more.low,
            high=step.high * more.high,
            source=weakest(step.source, more.source),
        )

    @property
    def cost_usd(self) -> Estimate | None:
        """Rent of the whole set for the whole time."""
        rent, total = self.usd_per_s, self.total_s
        return None if rent is None or total is None else total.scaled(rent)

    @property
    def energy_joule(self) -> Estimate | None:
        """Energy of the devices the plan uses, over all steps."""
        energy = None if self.result is None else self.result.best.price.energy_joule
        return None if energy is None else energy.scaled(self.steps)

    def meets_deadline(self, wishes: Wishes) -> Verdict | None:
        """How surely the time is within the deadline; ``None`` without one."""
        return self._verdict(wishes.deadline_s, self.total_s, self.least_total_s)

    def meets_budget(self, wishes: Wishes) -> Verdict | None:
        """How surely the money is within the budget; ``None`` without one."""
        return self._verdict(wishes.budget_usd, self.cost_usd, self.least_cost_usd)

    def _verdict(
        self, limit: float | None, estimate: Estimate | None, least: float | None
    ) -> Verdict | None:
        if limit is None:
            return None
        if estimate is not None:
            if estimate.high <= limit:
                return "surely"
            return "probably" if estimate.value <= limit else "not"
        no_plan = self.result is None and not self.skipped
        return "not" if no_plan or (least is not None and least > limit) else "unknown"

    def meets(self, wishes: Wishes) -> Verdict:
        """The weakest of the verdicts; ``surely`` when nothing is asked but a plan exists."""
        if self.result is None:
            return "not"
        found = {self.meets_deadline(wishes), self.meets_budget(wishes)}
        weakest: Verdict
        for weakest in ("not", "unknown", "probably"):
            if weakest in found:
                return weakest
        return "surely"

    def to_dict(self, wishes: Wishes) -> dict[str, Any]:
        """A row of ``machines`` in the JSON of ``plan``."""
        best = None if self.result is None else self.result.best
        estimates = {
            name: getattr(self, name)
            for name in ("step_time_s", "total_s", "cost_usd", "energy_joule")
        }
        return {
            "cluster": self.cluster.name,
            "devices": self.cluster.device_count,
            "steps": self.steps,
            **{name: e.to_dict() if e else None for name, e in estimates.items()},
            "meets_deadline": self.meets_deadline(wishes),
            "meets_budget": self.meets_budget(wishes),
            "plan": None if best is None else best.plan.to_dict(),
            "name": None if best is None else best.name,
            "reason": self.reason,
            "least_step_s": self.least_step_s if math.isfinite(self.least_step_s) else None,
        }


def pick(offers: Sequence[Offer], wishes: Wishes, objective: str) -> Offer | None:
    """The offer to take, ``None`` when none meets the wishes.

    Offers that meet the wishes surely come before those that do so probably. Among equals: with
    a deadline the cheapest, without prices the one with fewest devices; with a budget alone the
    fastest; with neither the best by the objective.
    """
    for wanted in ("surely", "probably"):
        able = [offer for offer in offers if offer.meets(wishes) == wanted]
        if able:
            return min(able, key=_order(wishes, objective))
    return None


def _order(wishes: Wishes, objective: str) -> Callable[[Offer], tuple[float, ...]]:
    def seconds(offer: Offer) -> float:
        return _value(offer.total_s)

    def money(offer: Offer) -> float:
        return _value(offer.cost_usd)

    def wanted(offer: Offer) -> float:
        if offer.result is None:
            return math.inf
        if objective == "memory":
            return offer.result.best.price.peak_memory_bytes.value
        if objective == "energy":
            return _value(offer.energy_joule)
        return money(offer) if objective == "cost" else seconds(offer)

    if wishes.deadline_s is not None:
        return lambda offer: (money(offer), offer.cluster.device_count, seconds(offer))
    if wishes.budget_usd is not None:
        return lambda offer: (seconds(offer), money(offer))
    return lambda offer: (wanted(offer), offer.cluster.device_count)


def pareto(offers: Sequence[Offer]) -> list[Offer]:
    """Offers with a price that no other beats in time or money without losing in the other."""
    known = [o for o in offers if o.total_s is not None and o.cost_usd is not None]
    known.sort(key=lambda o: (_value(o.total_s), _value(o.cost_usd)))
    front: list[Offer] = []
    for offer in known:
        if not front or _value(offer.cost_usd) < _value(front[-1].cost_usd):
            front.append(offer)
    return front


def _value(estimate: Estimate | None) -> float:
    return math.inf if estimate is None else estimate.value
