"""What a duel found: ratios of our step times to the other side's, and how sure they are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from autopar.core.stats import median

_NORMAL_P90 = 1.2816
_MEDIAN_OVER_MEAN = math.sqrt(math.pi / 2)
"""Of a normal distribution: its 90 % point; standard error of its median over that of its mean."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """What a duel found, pair by pair.

    Attributes:
        duel: Name of the duel.
        size: Name of the size.
        bound: Of the duel.
        ours_s: Our median step time on the slower rank.
        theirs_s: The same of the other side.
        ours_fastest_s: Our fastest step on the rank where that is slower.
        theirs_fastest_s: The same of the other side.
        ours_cpu_s: What both ranks computed in one of our steps: it counts work, not waiting.
        theirs_cpu_s: The same of the other side.
        loss_difference: Largest relative difference of the losses of the first steps.
    """

    duel: str
    size: str
    bound: float
    ours_s: tuple[float, ...]
    theirs_s: tuple[float, ...]
    ours_fastest_s: tuple[float, ...]
    theirs_fastest_s: tuple[float, ...]
    ours_cpu_s: tuple[float, ...]
    theirs_cpu_s: tuple[float, ...]
    loss_difference: float

    @property
    def good(self) -> bool:
        """Fast enough."""
        return self.ratio <= self.bound

    @property
    def ratios(self) -> tuple[float, ...]:
        """Ours over theirs of each pair, in order of size."""
        return _ratios(self.ours_s, self.theirs_s)

    @property
    def ratio(self) -> float:
        """Median of :attr:`ratios`."""
        return median(self.ratios)

    @property
    def fastest_ratio(self) -> float:
        """Ours over theirs of the lower quartiles of the fastest steps: those least disturbed."""
        return _lower_quartile(self.ours_fastest_s) / _lower_quartile(self.theirs_fastest_s)

    @property
    def cpu_ratio(self) -> float:
        """The same of CPU seconds."""
        return median(_ratios(self.ours_cpu_s, self.theirs_cpu_s))

    @property
    def uncertainty(self) -> float:
        """Standard error of :attr:`ratio`, from the spread of the pairs as if it were normal."""
        spread = (self.quantile(0.9) - self.quantile(0.1)) / (2 * _NORMAL_P90)
        return _MEDIAN_OVER_MEAN * spread / math.sqrt(len(self.ratios))

    def quantile(self, part: float) -> float:
        """The ratio below which a part of all pairs lies."""
        return self.ratios[round(part * (len(self.ratios) - 1))]


def _ratios(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, ...]:
    return tuple(sorted(a / b for a, b in zip(ours, theirs, strict=True)))


def _lower_quartile(values: Sequence[float]) -> float:
    return sorted(values)[len(values) // 4]
