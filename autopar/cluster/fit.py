"""Measured collective times made into a curve: monotone points, and the alpha-beta line."""

from __future__ import annotations

import math
from collections.abc import Sequence

from autopar.core.stats import median

_ROUNDS = 20
_LEAST_SHARE = 0.01
_HUBER = 1.345  # 95 % efficiency on Gaussian noise (Huber 1981)


def fit_alpha_beta(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Latency and bandwidth of ``seconds = alpha + bytes / bytes_per_s``.

    Iteratively re-weighted least squares on *relative* errors with Huber weights: a message of
    1 KiB counts as much as one of 64 MiB, and one disturbed point does not bend the line. Where
    the best line has a negative latency (caches make a curve convex), the latency is pinned to the
    fastest point. Where the points hardly rise, so that they say little about the rate, at least
    one hundredth of the largest message's time is counted as transfer.

    Args:
        points: ``(message bytes, seconds)``, both positive, at least one.

    Returns:
        ``(alpha_s, bytes_per_s)``, alpha not negative, rate positive.
    """
    fastest = min(seconds for _, seconds in points)
    largest, largest_s = max(points)
    weights = [1.0 / seconds**2 for _, seconds in points]
    alpha, slope = 0.0, largest_s / largest
    for _ in range(_ROUNDS):
        alpha, slope = _line(points, weights, fastest)
        errors = [abs(alpha + slope * x - t) / t for x, t in points]
        scale = max(1.4826 * median(errors), 1e-9)
        weights = [
            min(1.0, _HUBER * scale / max(error, 1e-12)) / t**2
            for error, (_, t) in zip(errors, points, strict=True)
        ]
    return alpha, 1.0 / max(slope, _LEAST_SHARE * largest_s / largest)


def _line(
    points: Sequence[tuple[float, float]], weights: Sequence[float], fastest: float
) -> tuple[float, float]:
    """Weighted least squares line; latency pinned to ``fastest`` if it would be negative."""
    rows = list(zip(weights, points, strict=True))
    total = sum(weights)
    mean_x = sum(w * x for w, (x, _) in rows) / total
    mean_t = sum(w * t for w, (_, t) in rows) / total
    spread = sum(w * (x - mean_x) ** 2 for w, (x, _) in rows)
    if spread == 0:
        return 0.0, mean_t / mean_x
    slope = sum(w * (x - mean_x) * (t - mean_t) for w, (x, t) in rows) / spread
    alpha = mean_t - slope * mean_x
    if alpha >= 0:
        return alpha, slope
    slope = sum(w * x * (t - fastest) for w, (x, t) in rows) / sum(w * x * x for w, (x, _) in rows)
    return fastest, slope


def non_decreasing(points: Sequence[tuple[float, float]]) -> tuple[tuple[float, float], ...]:
    """The points with times that never fall as the message grows.

    A larger message cannot be faster; where a measurement says so it is noise. Pool adjacent
    violators (Ayer et al. 1955) on the logarithms: neighbours out of order take their geometric
    mean, everything else stays as measured.

    Args:
        points: ``(message bytes, seconds)``, ascending in bytes.
    """
    pools: list[tuple[float, int]] = []  # mean of log seconds, points pooled
    for _, seconds in points:
        pools.append((math.log(seconds), 1))
        while len(pools) > 1 and pools[-2][0] > pools[-1][0]:
            (first, m), (second, n) = pools[-2:]
            pools[-2:] = [((first * m + second * n) / (m + n), m + n)]
    logs = [mean for mean, count in pools for _ in range(count)]
    return tuple((size, math.exp(log)) for (size, _), log in zip(points, logs, strict=True))
