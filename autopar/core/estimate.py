"""A number that says how far it can be trusted and where it comes from."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

Source = Literal["measured", "calibrated", "analytic", "assumed"]

_TRUST: tuple[Source, ...] = ("measured", "calibrated", "analytic", "assumed")


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A value with the range it is believed to lie in.

    Attributes:
        value: Best guess, in the SI unit named by the field that holds the estimate.
        low: Lower end of the range, ``low <= value``.
        high: Upper end of the range, ``value <= high``.
        source: Weakest kind of evidence the value rests on.

    Raises:
        ValueError: The three numbers are out of order or not finite.
    """

    value: float
    low: float
    high: float
    source: Source

    def __post_init__(self) -> None:
        if not all(math.isfinite(x) for x in (self.value, self.low, self.high)):
            raise ValueError(f"estimate is not finite: {self.low}, {self.value}, {self.high}")
        if not self.low <= self.value <= self.high:
            raise ValueError(f"estimate needs low <= value <= high, got {self}")

    @classmethod
    def spread(cls, value: float, *, relative: float, source: Source) -> Estimate:
        """A non-negative value with a range of ratios: ``relative=0.2`` is 1/1.2 to 1.2 times it.

        Errors of times and sizes are ratios, and a range of ratios never reaches zero however wide
        it is.
        """
        ratio = 1 + relative
        return cls(value=value, low=value / ratio, high=value * ratio, source=source)

    def scaled(self, factor: float) -> Estimate:
        """The estimate times a non-negative constant."""
        return Estimate(
            value=self.value * factor,
            low=self.low * factor,
            high=self.high * factor,
            source=self.source,
        )

    def to_dict(self) -> dict[str, Any]:
        """The JSON form of the outward contract."""
        return {"value": self.value, "low": self.low, "high": self.high, "source": self.source}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Estimate:
        """Inverse of :meth:`to_dict`."""
        return cls(value=data["value"], low=data["low"], high=data["high"], source=data["source"])


def weakest(*sources: Source) -> Source:
    """The least trustworthy of several sources (measured > calibrated > analytic > assumed)."""
    return max(sources, key=_TRUST.index)
