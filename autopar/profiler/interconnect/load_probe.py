"""Times computation inside a running process group: alone, under load, beside a collective."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.distributed as dist

from autopar.core.stats import median, quantile
from autopar.profiler.interconnect.collective_probe import all_reduce_seconds, share

_MIX_MATRIX = 384
_MIX_BYTES = 32 * 1024**2
_PART_SECONDS = 12e-3
_BEFORE_SECONDS = 4e-4
_OVERLAP_BYTES = 4 * 1024**2
_LOW = 0.25


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceFigures:
    """What one rank alone on its host reaches."""

    peak_flop_per_s: dict[str, float]
    memory_bytes_per_s: float
    launch_s: float


def device_figures(*, seconds: float) -> DeviceFigures:
    """Peak rates of this process with its threads, nothing else running.

    Args:
        seconds: Rough time to spend.
    """
    share_s = seconds / 5
    dtypes = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    peaks = {name: _matmul_rate(dtype, share_s) for name, dtype in dtypes.items()}
    return DeviceFigures(
        peak_flop_per_s=peaks, memory_bytes_per_s=_copy_rate(share_s), launch_s=_launch_s(share_s)
    )


def busy_slowdown(
    *, local_rank: int, counts: Sequence[int], rounds: int
) -> tuple[dict[int, float], dict[str, dict[int, float]]]:
    """Time of a fixed mix with several busy ranks on every host, relative to one busy rank.

    The counts take turns within each round, so that a slow drift of the host hits them alike.
    Each part of the mix (matrix products, memory-bound pointwise work, tiny operators) starts
    together on all busy ranks and lasts until the slowest is done, as stages of equal work do in
    a training step. The lower quartile of the rounds is compared: other programs only add time.

    Args:
        local_rank: This rank's number on its host; it works when it is below the count.
        counts: Numbers of busy ranks to try; holds 1.
        rounds: Repeats.

    Returns:
        Slowdown by count (1.0 for one rank, never falling), and the same for each part.
    """
    parts = _mix()
    rows: dict[int, list[list[float]]] = {count: [] for count in counts}
    for _ in range(rounds):
        for count in counts:
            row = []
            for part in parts.values():
                dist.barrier()
                row.append(_seconds(part) if local_rank < count else 0.0)
            rows[count].append(row)
    everyone: list[dict[int, list[list[float]]]] = share(rows)
    detail: dict[str, dict[int, float]] = {}
    for index, name in enumerate(parts):
        slowest = {
            count: [max(rank[count][r][index] for rank in everyone) for r in range(rounds)]
            for count in counts
        }
        alone = quantile(slowest[1], _LOW)
        detail[name] = {count: quantile(slowest[count], _LOW) / alone for count in counts}
    total = {c: sum(part[c] for part in detail.values()) / len(detail) for c in counts}
    return _never_falling(total), detail


def overlap_slowdown(*, rounds: int) -> float:
    """Extra time of the mix while all-reduces run beside it, as a share of its time without.

    All ranks compute in both cases, so that only the collective makes the difference.
    """
    parts = _mix()
    buffers = [torch.empty(_OVERLAP_BYTES // 4).fill_(0.0) for _ in range(4)]
    alone_s = [_compute(parts) for _ in range(2)][-1]
    each_s = all_reduce_seconds(_OVERLAP_BYTES)
    calls = min(64, max(2, round(2 * max(share(alone_s)) / each_s)))
    alone, beside = [], []
    for _ in range(rounds):
        dist.barrier()
        alone.append(_compute(parts))
        dist.barrier()
        works = [
            dist.all_reduce(buffers[call % len(buffers)], async_op=True) for call in range(calls)
        ]
        beside.append(_compute(parts))
        for work in works:
            if work is not None:
                work.wait()
    ratio = quantile(beside, _LOW) / quantile(alone, _LOW)
    return min(max(median(share(ratio)) - 1.0, 0.0), 1.0)


def step_like_compute() -> Callable[[], None]:
    """What lies between two collectives of a step: a few operators, alike on every rank."""
    left, right = torch.ones(128, 64), torch.ones(64, 64)
    return _repeat(partial(torch.mm, left, right), seconds=_BEFORE_SECONDS)


def _never_falling(slowdown: dict[int, float]) -> dict[int, float]:
    """More busy ranks cannot make the work faster; what says so is noise."""
    result: dict[int, float] = {}
    highest = 1.0
    for count in sorted(slowdown):
        highest = max(highest, slowdown[count]) if count > 1 else 1.0
        result[count] = highest
    return result


def _compute(parts: dict[str, Callable[[], None]]) -> float:
    started = time.perf_counter()
    for part in parts.values():
        part()
    return time.perf_counter() - started


def _mix() -> dict[str, Callable[[], None]]:
    """Three kinds of work of about equal length (:data:`_PART_SECONDS` each on this host)."""
    left, right = torch.ones(_MIX_MATRIX, _MIX_MATRIX), torch.ones(_MIX_MATRIX, _MIX_MATRIX)
    large, other = torch.ones(_MIX_BYTES // 4), torch.ones(_MIX_BYTES // 4)
    small = torch.ones(64)

    def matmul() -> None:
        torch.mm(left, right)

    def pointwise() -> None:
        torch.add(large, 1.0, out=other)

    def tiny() -> None:
        for _ in range(100):
            torch.add(small, 1.0)

    parts = {"matmul": matmul, "pointwise": pointwise, "tiny": tiny}
    return {name: _repeat(call) for name, call in parts.items()}


def _repeat(call: Callable[[], object], *, seconds: float = _PART_SECONDS) -> Callable[[], None]:
    """A loop over ``call``, its length agreed by all ranks so that they do the same work."""
    call()
    once = min(_seconds(call) for _ in range(3))
    times = max(1, round(seconds / max(min(share(once)), 1e-7)))

    def loop() -> None:
        for _ in range(times):
            call()

    return loop


def _matmul_rate(dtype: torch.dtype, seconds: float) -> float:
    """Best rate of square products; the size grows while there is time (slow half types)."""
    best = 0.0
    started = time.perf_counter()
    for size in (128, 256, 512, 1024):
        left = torch.ones(size, size, dtype=dtype)
        right = torch.ones(size, size, dtype=dtype)
        product = partial(torch.mm, left, right)
        best = max(best, *(2 * size**3 / _seconds(product) for _ in range(4)))
        if time.perf_counter() - started + 4 * 2 * (2 * size) ** 3 / best > seconds:
            break
    return best


def _copy_rate(seconds: float) -> float:
    """Bytes read and written per second by a copy far larger than the caches."""
    source = torch.empty(4 * _MIX_BYTES // 4).fill_(1.0)
    target = torch.empty_like(source).fill_(0.0)
    size = 2 * source.numel() * source.element_size()
    started = time.perf_counter()
    best = 0.0
    while best == 0.0 or time.perf_counter() - started < seconds:
        best = max(best, size / _seconds(lambda: target.copy_(source)))
    return best


def _launch_s(seconds: float) -> float:
    """Time of one operator on 64 numbers, the floor of every operator."""
    small = torch.ones(64)

    def batch() -> None:
        for _ in range(200):
            torch.add(small, 1.0)

    batch()
    started = time.perf_counter()
    best = _seconds(batch)
    while time.perf_counter() - started < seconds / 2:
        best = min(best, _seconds(batch))
    return best / 200


def _seconds(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started
