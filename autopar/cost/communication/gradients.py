"""Seconds of gradient synchronisation in buckets, alone or beside backward."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from autopar.cost.work import Vector


def bucketed_seconds(
    size_bytes: float, bucket_bytes: float, seconds: Callable[[float], float]
) -> float:
    """All buckets one after the other.

    Args:
        size_bytes: Gradient bytes.
        bucket_bytes: Bucket size.
        seconds: Time of one bucket of the given bytes.
    """
    whole = int(size_bytes // bucket_bytes)
    rest = size_bytes - whole * bucket_bytes
    return whole * seconds(bucket_bytes) + (seconds(rest) if rest > 0 else 0.0)


def many_bucketed_seconds(
    sizes_bytes: Vector, bucket_bytes: float, seconds: Callable[[Vector], Vector]
) -> Vector:
    """:func:`bucketed_seconds` of several ranks.

    Args:
        sizes_bytes: Gradient bytes of each.
        bucket_bytes: Bucket size.
        seconds: Times of one bucket each of the given bytes.
    """
    whole = sizes_bytes // bucket_bytes
    rest = sizes_bytes - whole * bucket_bytes
    last = np.where(rest > 0, seconds(rest), 0.0)
    return np.asarray(whole * seconds(np.array([bucket_bytes], dtype=float)) + last)


def overlapped_seconds(
    backward_s: Sequence[float],
    gradient_bytes: Sequence[float],
    bucket_bytes: float,
    seconds: Callable[[float], float],
    slowdown: float,
) -> tuple[float, float]:
    """Buckets that start as soon as backward has filled them (DistributedDataParallel).

    Gradients of a block become ready evenly while its backward runs; buckets go one at a time.
    ``k`` buckets that fill at even intervals end at the latest of: all after the queue, all after
    the first is full, the last one after it is full.

    Args:
        backward_s: Backward seconds of the blocks, in the order backward runs them.
        gradient_bytes: Gradient bytes that become ready in each.
        bucket_bytes: Bucket size, of the first bucket too (the executor sets it).
        seconds: Time of one bucket of the given bytes.
        slowdown: Extra backward time per second of communication beside it.

    Returns:
        Time of all buckets alone, and the part that lengthens the step.
    """
    clock = finished = full = held = 0.0
    whole = seconds(bucket_bytes)
    for duration, size in zip(backward_s, gradient_bytes, strict=True):
        filled = int((held + size) // bucket_bytes) if size > 0 else 0
        if filled:
            per_byte = duration / size
            first = clock + (bucket_bytes - held) * per_byte
            last = first + (filled - 1) * bucket_bytes * per_byte
            full += filled * whole
            finished = max(finished + filled * whole, first + filled * whole, last + whole)
            held = held + size - filled * bucket_bytes
        else:
            held += size
        clock += duration
    if held > 0:
        cost = seconds(held)
        full += cost
        finished = max(finished, clock) + cost
    tail = max(0.0, finished - clock)
    return full, tail + slowdown * max(0.0, full - tail)
