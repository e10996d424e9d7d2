"""Seconds of a block's forward and backward pass, repeated until they are stable."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from autopar.core.stats import median, quantile
from autopar.profiler.timing.payload import Runner
from autopar.profiler.timing.policy import MeasurePolicy

Agree = Callable[[float], float]
"""Replaces a number by rank 0's, so that all ranks do the same number of passes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Samples:
    """Repeated timings.

    Attributes:
        forward_s: One entry per repeat.
        backward_s: One entry per repeat.
    """

    forward_s: tuple[float, ...]
    backward_s: tuple[float, ...]

    def typical(self, q: float, window_s: float) -> tuple[float, float]:
        """Quantile over windows of the mean pass in each: forward and backward seconds.

        Args:
            q: The quantile.
            window_s: Least seconds of passes in a window; 0 takes each pass by itself. A host with
                fewer cores than ranks lets a short pass run to its end undisturbed and another
                wait for a turn of several milliseconds: only a mean over many turns says what
                passes cost.
        """
        forward, backward = [], []
        for rows in windows(list(zip(self.forward_s, self.backward_s, strict=True)), window_s):
            forward.append(sum(f for f, _ in rows) / len(rows))
            backward.append(sum(b for _, b in rows) / len(rows))
        return quantile(forward, q), quantile(backward, q)

    @property
    def spread(self) -> float:
        """Half the distance between the 5 % and 95 % quantiles of a pass, over its median."""
        passes = [f + b for f, b in zip(self.forward_s, self.backward_s, strict=True)]
        middle = median(passes)
        return (quantile(passes, 0.95) - quantile(passes, 0.05)) / 2 / middle if middle else 0.0


def windows(
    passes: Sequence[tuple[float, float]], window_s: float
) -> list[Sequence[tuple[float, float]]]:
    """Runs of passes that last a time at least; what is left over joins the last.

    Args:
        passes: Seconds of the two parts of each.
        window_s: That time.
    """
    found: list[Sequence[tuple[float, float]]] = []
    first, spent = 0, 0.0
    for index, pair in enumerate(passes):
        spent += sum(pair)
        if spent >= window_s:
            found.append(passes[first : index + 1])
            first, spent = index + 1, 0.0
    if first < len(passes):
        if found:
            found[-1] = passes[first - len(found[-1]) :]
        else:
            found.append(passes)
    return found


def time_runner(
    runner: Runner, device: str, policy: MeasurePolicy, *, agree: Agree, align: Callable[[], None]
) -> Samples | None:
    """Warm up, agree on the number of repeats, and time forward and backward.

    Args:
        runner: The block.
        device: Where it lives.
        policy: Warm-up, repeats and limits.
        agree: Makes a number equal on all ranks.
        align: Waits for all ranks.

    Returns:
        The samples, or ``None`` when a pass takes longer than ``policy.longest_pass_s``.
    """
    clock = _clock(device)
    once = spent = 0.0
    for _ in range(policy.warmup):
        once = agree(sum(_pass(runner, clock)))
        spent += once
        if spent > policy.long_point_s / 2:
            break
    if once > policy.longest_pass_s:
        return None
    repeats = repeats_of(once, policy)
    align()
    with no_collection():
        pairs = [_pass(runner, clock) for _ in range(repeats)]
    return Samples(forward_s=tuple(f for f, _ in pairs), backward_s=tuple(b for _, b in pairs))


def time_call(call: Callable[[], None], device: str, *, repeats: int) -> float:
    """Median seconds of a call after one warm-up."""
    clock = _clock(device)
    call()
    seconds = []
    for _ in range(repeats):
        start = clock()
        call()
        seconds.append(_between(start, clock()))
    return median(seconds)


def repeats_of(once: float, policy: MeasurePolicy) -> int:
    """Passes that fill the time of a point; a few long ones when a single pass is long."""
    wanted = round(policy.point_s / max(once, 1e-6))
    affordable = max(2, int(policy.long_point_s / max(once, 1e-6)))
    fewest = min(policy.fewest_repeats, affordable)
    return min(max(wanted, fewest), policy.most_repeats)


Moment = object
Between = Callable[[Moment, Moment], float]


def clock_of(device: str) -> tuple[Callable[[], Moment], Between]:
    """Marks of a device, and the seconds between two of them."""
    return _clock(device), _between


def _pass(runner: Runner, clock: Callable[[], Moment]) -> tuple[float, float]:
    start = clock()
    results = runner.forward()
    middle = clock()
    if results:
        seeds = runner.seeds(results)
        torch.autograd.backward(results, seeds)
    end = clock()
    del results
    runner.clear()
    return _between(start, middle), _between(middle, end)


def _clock(device: str) -> Callable[[], Moment]:
    """A clock for a device: wall time, or events on the current stream of a GPU."""
    if device.startswith("cuda"):
        return _record_event
    return time.perf_counter


def _record_event() -> Moment:
    event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    event.record()
    return event


def _between(start: Moment, end: Moment) -> float:
    if isinstance(start, torch.cuda.Event) and isinstance(end, torch.cuda.Event):
        end.synchronize()
        return float(start.elapsed_time(end)) * 1e-3
    assert isinstance(start, float) and isinstance(end, float)
    return end - start


@contextmanager
def no_collection() -> Iterator[None]:
    """Keep Python's garbage collector out of the timings."""
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
