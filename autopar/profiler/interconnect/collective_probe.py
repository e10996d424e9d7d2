"""Times collectives inside a running process group (one call per rank, all ranks together)."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from autopar.core.stats import median
from autopar.profiler.interconnect.layouts import Layout, curve_keys

_WARM_UP = 2
_MIN_REPEATS = 3
_MAX_REPEATS = 200
_ROUNDS = 4
_LEAST_S = 1e-6
_MIN_SIZES = 3
_WANTED_BYTES = 4 * 1024**2
_FLOAT_BYTES = 4
_WEIGHTLESS_BYTES = 256 * 1024

Tick = Callable[[str, float], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredCurve:
    """Times of one collective in one layout, not yet fitted; plain values."""

    collective: str
    ranks: int
    concurrency: int
    nodes: int
    points: list[tuple[float, float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """This rank's part in a layout: its group, or ``None`` while it stays idle."""

    layout: Layout
    ranks: tuple[int, ...] | None
    group: dist.ProcessGroup | None


def join(layouts: Sequence[Layout], timeout: timedelta) -> list[Member]:
    """Make the groups of every layout; every rank has to call it with the same layouts."""
    made: dict[tuple[int, ...], Any] = {}
    members = []
    for layout in layouts:
        mine: tuple[int, ...] | None = None
        for ranks in layout.groups:
            if ranks not in made:
                made[ranks] = dist.new_group(list(ranks), timeout=timeout)
            if dist.get_rank() in ranks:
                mine = ranks
        members.append(Member(layout=layout, ranks=mine, group=made[mine] if mine else None))
    return members


def measure_curves(
    members: Sequence[Member],
    *,
    before: Callable[[], None],
    sizes: Sequence[int],
    budget_s: float,
    tick: Tick,
) -> list[MeasuredCurve]:
    """Curves of all collectives in all layouts, the same list on every rank.

    A collective costs what it adds to a loop of a little computation and the collective, over the
    same loop without it: ranks drift apart and wait for each other, communication threads take
    turns with computing ones, now and then a wake-up waits for the scheduler's next tick (4 ms on
    Linux). A step adds up many collectives and so pays their mean. Between ranks that meet at a
    barrier first, small collectives look several times faster than any step ever sees them.
    Messages between two ranks are sent ahead and hide: their median is kept, alone.

    Args:
        members: What :func:`join` returned.
        before: The computation, the same amount on every rank.
        sizes: Message bytes, ascending.
        budget_s: Time for all curves together. Repeats shrink to keep it; messages above 4 MiB
            that would break it are left out, smaller ones only where the network is very slow.
        tick: Told the name of each curve and the fraction done.
    """
    jobs = [(member, key) for member in members for key in curve_keys(member.layout)]
    curves = []
    started = time.perf_counter()
    for done, (member, collective) in enumerate(jobs):
        layout = member.layout
        tick(f"{collective} x{layout.size}", done / len(jobs))
        left = budget_s - _shared_seconds(started)
        fair = budget_s / len(jobs)
        own_s = max(left / (len(jobs) - done), fair / 4)  # overdrafts do not starve the last
        points = _points(member, collective, before, sizes, own_s)
        curves.append(
            MeasuredCurve(
                collective=collective,
                ranks=layout.size,
                concurrency=layout.concurrency,
                nodes=layout.nodes,
                points=points,
            )
        )
    return curves


def all_reduce_seconds(size_bytes: int) -> float:
    """Typical time of an all-reduce over all ranks, the same value on every rank."""
    everyone = tuple(range(dist.get_world_size()))
    call = _prepare("all_reduce", everyone, dist.group.WORLD, size_bytes)
    spans = [_once(call, _nothing, dist.group.WORLD) for _ in range(_WARM_UP + _MIN_REPEATS)]
    return float(max(share(median([end - start for start, end in spans[_WARM_UP:]]))))


def share(value: Any) -> list[Any]:
    """The value of every rank, on every rank."""
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def _shared_seconds(started: float) -> float:
    """Seconds since ``started`` on rank 0's clock, so that all ranks decide alike."""
    return float(share(time.perf_counter() - started)[0])


def _points(
    member: Member,
    collective: str,
    before: Callable[[], None],
    sizes: Sequence[int],
    budget_s: float,
) -> list[tuple[float, float]]:
    points: list[tuple[float, float]] = []
    started = time.perf_counter()
    for index, size in enumerate(sizes):
        call = None
        if member.ranks is not None:
            call = _prepare(collective, member.ranks, member.group, size)
        guess = _warm_up(call, before, member.group)
        left = budget_s - _shared_seconds(started)
        costly = guess > budget_s if size <= _WANTED_BYTES else guess * _MIN_REPEATS > 2 * left
        if len(points) >= _MIN_SIZES and costly:
            break
        share_of_left = _weight(size) / sum(_weight(other) for other in sizes[index:])
        wanted = int(max(left, 0.0) * share_of_left / guess)
        repeats = min(max(wanted, _MIN_REPEATS), _MAX_REPEATS)
        points.append((float(size), _typical_seconds(collective, call, before, member, repeats)))
    return points


def _weight(size: int) -> float:
    """Share of the time a message size gets, so that large ones are repeated often enough."""
    return max(1.0, math.sqrt(size / _WEIGHTLESS_BYTES))


def _warm_up(call: Callable[[], None] | None, before: Callable[[], None], group: Any) -> float:
    """Seconds of the last warm-up repeat, the slowest rank's, the same value on every rank."""
    seconds = 1e-6
    if call is not None:
        for _ in range(_WARM_UP):
            started = time.perf_counter()
            _once(_nothing, before, group)
            _once(call, before, group)
            seconds = time.perf_counter() - started
    return float(max(share(seconds)))


def _typical_seconds(
    collective: str,
    call: Callable[[], None] | None,
    before: Callable[[], None],
    member: Member,
    repeats: int,
) -> float:
    """Seconds of a collective or message, mean over the groups that ran together."""
    mine: float | None = None
    if call is not None and collective == "send_recv":
        spans = [_once(call, before, member.group) for _ in range(repeats)]
        mine = median(_durations(spans, member))
    elif call is not None:
        mine = _added_seconds(call, before, member, repeats)
    found = [float(value) for value in share(mine) if value is not None]
    return sum(found) / len(found)


def _added_seconds(
    call: Callable[[], None], before: Callable[[], None], member: Member, repeats: int
) -> float:
    """What a call adds to a loop of computation: median over rounds of the mean of each."""
    each = max(1, math.ceil(repeats / _ROUNDS))
    rows = [
        (_loop(_nothing, before, member.group, each), _loop(call, before, member.group, each))
        for _ in range(_ROUNDS)
    ]
    own = torch.tensor(rows, dtype=torch.float64)
    gathered = [torch.empty_like(own) for _ in range(member.layout.size)]
    dist.all_gather(gathered, own, group=member.group)
    slowest = torch.stack(gathered).amax(0)  # round, (without, with)
    added = [float(beside - alone) / each for alone, beside in slowest]
    return max(median(added), _LEAST_S)


def _loop(call: Callable[[], None], before: Callable[[], None], group: Any, repeats: int) -> float:
    dist.barrier(group=group)
    started = time.perf_counter()
    for _ in range(repeats):
        before()
        call()
    return time.perf_counter() - started


def _durations(spans: list[tuple[float, float]], member: Member) -> list[float]:
    """Seconds of each repeat from the spans of all ranks of the group.

    On one host the clocks agree: a collective lasts from the arrival of its last rank to the
    exit of its last rank. Between hosts they do not: the slowest rank's own time is taken.
    """
    own = torch.tensor(spans, dtype=torch.float64)
    gathered = [torch.empty_like(own) for _ in range(member.layout.size)]
    dist.all_gather(gathered, own, group=member.group)
    everyone = torch.stack(gathered)  # rank, repeat, (start, end)
    if member.layout.nodes == 1:
        seconds = everyone[:, :, 1].amax(0) - everyone[:, :, 0].amax(0)
    else:
        seconds = (everyone[:, :, 1] - everyone[:, :, 0]).amax(0)
    return [float(value) for value in seconds]


def _once(call: Callable[[], None], before: Callable[[], None], group: Any) -> tuple[float, float]:
    """Start and end of one call, after all ranks of the group have met and computed."""
    dist.barrier(group=group)
    before()
    started = time.perf_counter()
    call()
    return started, time.perf_counter()


def _prepare(
    collective: str, ranks: tuple[int, ...], group: Any, size_bytes: int
) -> Callable[[], None]:
    """A call that runs the collective once on a message of about ``size_bytes``.

    The buffers hold zeros that have been written, so that sums stay finite and pages exist.
    """
    part = max(1, size_bytes // _FLOAT_BYTES // len(ranks))
    full = torch.empty(part * len(ranks)).fill_(0.0)
    shard = torch.empty(part).fill_(0.0)
    received = torch.empty_like(full) if collective in ("all_to_all", "reduce_scatter") else full
    first = dist.get_rank() == ranks[0]
    calls: dict[str, Callable[[], object]] = {
        "all_reduce": lambda: dist.all_reduce(full, group=group),
        "reduce_scatter": lambda: _REDUCE_SCATTER(shard, full, group=group),
        "all_gather": lambda: _ALL_GATHER(full, shard, group=group),
        "all_to_all": lambda: dist.all_to_all_single(received, full, group=group),
        "broadcast": lambda: dist.broadcast(full, ranks[0], group=group),
        "send_recv": (lambda: dist.send(full, ranks[1], group=group))
        if first
        else (lambda: dist.recv(full, ranks[0], group=group)),
    }
    if collective == "reduce_scatter" and dist.get_backend(group) == "gloo":
        return lambda: _exchange_and_add(received, full, len(ranks), group)  # as the executor
    call = calls[collective]
    return lambda: _discard(call())


def _exchange_and_add(received: torch.Tensor, given: torch.Tensor, ranks: int, group: Any) -> None:
    """Reduce-scatter on gloo, whose own sends twice the bytes."""
    dist.all_to_all_single(received, given, group=group)
    torch.sum(received.view(ranks, -1), 0)


def _nothing() -> None:
    """No computation."""


def _discard(_: object) -> None:
    """Drop a collective's return value."""


# torch 2.13 renamed these two; the old names remain in 2.11 and 2.12.
_REDUCE_SCATTER: Callable[..., Any] = getattr(
    dist, "reduce_scatter_single", dist.reduce_scatter_tensor
)
_ALL_GATHER: Callable[..., Any] = getattr(dist, "all_gather_single", dist.all_gather_into_tensor)
