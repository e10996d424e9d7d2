"""A flip of the choice, and bisection to find one."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from autopar.plans import Plan
from autopar.results import RankedPlan
from autopar.search.explain.parts import strategy_name
from autopar.search.explain.quantities import QUANTITIES

TOLERANCE = 0.02
"""Relative width to which a flip is located."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BreakEven:
    """A flip of the choice.

    Attributes:
        quantity: Name in :data:`autopar.search.explain.quantities.QUANTITIES`.
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
        return text if self.confirmed else text + ", among the plans compared"


def axes_used(plan: Plan) -> tuple[str, ...]:
    """Mesh axes of a plan that are larger than 1."""
    return tuple(axis for axis, degree in plan.mesh.to_dict().items() if degree > 1)


def nearer(scale: float) -> float:
    """A scale moved towards 1 by the tolerance."""
    distance = math.log(scale)
    return math.exp(math.copysign(max(0.0, abs(distance) - TOLERANCE), distance))


def bisect(
    holds: Callable[[float], bool], near: float, far: float, tolerance: float = TOLERANCE
) -> float:
    """The scale nearest to ``near`` at which a condition holds that holds at ``far``.

    Bisection on the logarithm to a relative tolerance; right if the condition, once true, stays.
    """
    good = far
    while abs(math.log(good / near)) > tolerance:
        middle = math.sqrt(near * good)
        near, good = (near, middle) if holds(middle) else (middle, good)
    return good
