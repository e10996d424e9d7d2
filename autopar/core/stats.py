"""Small robust statistics for noisy timings."""

from __future__ import annotations

import math
from collections.abc import Sequence

COUNTED_QUANTILE = 0.25
"""Quantile of repeated step times that counts: other programs only ever add time."""


def quantile(values: Sequence[float], q: float) -> float:
    """Linear-interpolated quantile of a non-empty sequence, ``0 <= q <= 1``."""
    ordered = sorted(values)
    position = q * (len(ordered) - 1)
    low = math.floor(position)
    high = math.ceil(position)
    return ordered[low] + (ordered[high] - ordered[low]) * (position - low)


def median(values: Sequence[float]) -> float:
    """Median of a non-empty sequence."""
    return quantile(values, 0.5)


def mean(values: Sequence[float]) -> float:
    """Mean of a non-empty sequence."""
    return sum(values) / len(values)


def trimmed_mean(values: Sequence[float], share: float = 0.1) -> float:
    """Mean without the lowest and highest share of a non-empty sequence.

    Args:
        values: The sequence.
        share: Part that is left out at each end.
    """
    low, high = quantile(values, share), quantile(values, 1 - share)
    return mean([value for value in values if low <= value <= high])


def rising_line(counts: Sequence[float], values: Sequence[float]) -> tuple[float, float]:
    """``value = fixed + each x count`` through a small and a large count, neither below 0.

    Args:
        counts: The two counts, the smaller first.
        values: Their values.

    Returns:
        ``fixed`` and ``each``.
    """
    (few, many), (low, high) = counts, values
    each = max((high - low) / (many - few), 0.0)
    return max(low - few * each, 0.0), each


def kendall_tau(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Kendall's tau-b of two equally long sequences; ``None`` when either is constant.

    Formula: (concordant - discordant) / sqrt((n0 - ties_1) (n0 - ties_2)), n0 = n(n-1)/2
    (Kendall 1945, "The treatment of ties in ranking problems").
    """
    concordant = discordant = ties_first = ties_second = pairs = 0
    for i in range(len(first)):
        for j in range(i + 1, len(first)):
            pairs += 1
            a, b = first[i] - first[j], second[i] - second[j]
            ties_first += a == 0
            ties_second += b == 0
            concordant += a * b > 0
            discordant += a * b < 0
    scale = (pairs - ties_first) * (pairs - ties_second)
    return (concordant - discordant) / math.sqrt(scale) if scale > 0 else None
