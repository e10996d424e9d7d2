"""Which of two plans is faster, and how sure that is: what both share cancels."""

from __future__ import annotations

import math
from dataclasses import dataclass

from autopar.cost import constants as k
from autopar.results import RankedPlan
from autopar.search.questions.sensitivity import Z90, Repricer
from autopar.search.stages.goal import value_of

CLOSE = 0.1
"""Odds of the order being wrong from which on it is called too close."""
PLAN_SPREAD = k.MEASURED_SPREAD_FLOOR.value / Z90
"""Relative standard deviation of one plan's time that no shared constant explains."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """A plan compared with the chosen one on the same, uncertain hardware.

    Attributes:
        other: The plan it is compared with.
        margin: Objective of the other over that of the chosen plan, minus 1.
        sd: Standard deviation of the logarithm of their ratio.
        odds: Probability that the other plan is in fact the better one.
        drivers: Resource -> factor of it at which the order turns, for the resources whose
            uncertainty alone could turn it (90 %), the likeliest first.
    """

    other: RankedPlan
    margin: float
    sd: float
    odds: float
    drivers: tuple[tuple[str, float], ...]

    @property
    def close(self) -> bool:
        """True when the order is too close to call."""
        return self.odds > CLOSE


def overlap(best: RankedPlan, other: RankedPlan) -> bool:
    """True when the ranges of two step times meet, so that a comparison is worth its price."""
    return other.price.step_time_s.low <= best.price.step_time_s.high


def compare_pair(
    best: RankedPlan, other: RankedPlan, repricer: Repricer, objective: str = "time"
) -> Pair:
    """How sure the order of two plans is.

    Both plans are priced on the same changed hardware, resource by resource. With elasticities
    ``e`` (share of the step that scales with a resource) and ``u`` the standard deviation of the
    resource's logarithm, the logarithm of the ratio of their times has, to first order,

        sd^2 = sum over resources ((e_other - e_best) * u)^2 + 2 * plan^2

    so what slows both plans alike does not count. ``plan`` is what two runs of one plan differ by.
    """
    mine, theirs = (
        repricer.elasticities(item.plan, item.price.step_time_s.value) for item in (best, other)
    )
    margin = value_of(other.price, objective) / value_of(best.price, objective) - 1
    gap = math.log1p(margin)
    difference = {name: theirs.get(name, 0.0) - mine.get(name, 0.0) for name in {**mine, **theirs}}
    spread = {name: d * repricer.uncertainty(name) for name, d in difference.items()}
    sd = math.sqrt(sum(s * s for s in spread.values()) + 2 * PLAN_SPREAD**2)
    turning = [
        # ln(ratio) falls by d * ln(factor): the order turns where that equals the gap
        (gap / abs(spread[name]), name, math.exp(gap / d))
        for name, d in difference.items()
        if spread[name] and 0 <= gap <= Z90 * abs(spread[name])  # else the other leads already
    ]
    return Pair(
        other=other,
        margin=margin,
        sd=sd,
        odds=0.5 * math.erfc(gap / sd / math.sqrt(2)),
        drivers=tuple((name, factor) for _, name, factor in sorted(turning)),
    )
