"""How many steps a training run needs to a loss, read from its noisy losses."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate


def smoothed(losses: Sequence[float], window: int) -> list[float]:
    """Means over every ``window`` losses in a row; ``len(losses) - window + 1`` of them.

    Args:
        losses: Loss of each step.
        window: Losses in a mean, at least 1.
    """
    sums = [0.0, *accumulate(losses)]
    return [(b - a) / window for a, b in zip(sums, sums[window:], strict=False)]


def steps_to(losses: Sequence[float], target: float, window: int) -> float | None:
    """Steps until the smoothed loss is first at or below a target, ``None`` when it never is.

    A mean counts for the middle of its window, as it lags behind the losses by half of it.

    Args:
        losses: Loss of each step.
        target: Loss to reach.
        window: Losses in a mean.
    """
    for i, mean in enumerate(smoothed(losses, window)):
        if mean <= target:
            return i + (window + 1) / 2
    return None
