"""Changes that make an infeasible search feasible: each was tried, the smallest comes first."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

from autopar.cluster import Cluster, Device
from autopar.core.errors import InputError
from autopar.core.units import format_bytes
from autopar.cost import CostModel
from autopar.cost.memory import device_capacity
from autopar.search.explain.change import changed_cluster
from autopar.search.options import SearchOptions
from autopar.search.space.build import build_space, fixed_spec
from autopar.search.space.spec import Spec, Value
from autopar.search.walk.best_first import Walk

MAX_GROWTH = 64
"""Device counts up to this many times the cluster are tried."""
BATCHES = 24
"""Global batches near the wanted one that are looked at."""
SLACK = 1.01
"""Memory is named a hundredth above what is needed, as it is printed with few digits."""


@dataclass(frozen=True, kw_only=True)
class Relaxation:
    """A change that works.

    Attributes:
        words: What to do, as an order.
        factor: How many times more (or fewer) of something it takes; infinite for giving up a
            wish, which has no size.
    """

    words: str
    factor: float


def in_words(found: Iterable[Relaxation]) -> str:
    """All of them, the smallest first."""
    ordered = sorted(found, key=lambda relaxation: relaxation.factor)
    return "; or ".join(relaxation.words for relaxation in ordered)


def feasible(model: CostModel, options: SearchOptions) -> bool:
    """True when some plan satisfies the constraints."""
    free = replace(options, objective="memory", top=1)
    walk = Walk(
        model=model,
        options=free,
        space=build_space(model.profile, model.cluster, free),
    )
    walk.start()
    return walk.next() is not None


def more_memory(
    model: CostModel, options: SearchOptions, needed_bytes: float, limit_bytes: float, capped: bool
) -> Iterator[Relaxation]:
    """A higher ``--max-memory`` where the devices have it, else larger devices."""
    wanted, factor = needed_bytes * SLACK, needed_bytes * SLACK / limit_bytes
    if capped and wanted <= device_capacity(_largest(model.cluster)):
        if feasible(model, replace(options, max_memory_bytes=wanted)):
            yield Relaxation(words=f"raise --max-memory to {format_bytes(wanted)}", factor=factor)
        return
    words = f"use devices with at least {format_bytes(sold_bytes(model.cluster, needed_bytes))}"
    if capped:
        words += " and raise --max-memory to that"
    yield Relaxation(words=words, factor=factor)


def _largest(cluster: Cluster) -> Device:
    return max(map(cluster.device, range(cluster.device_count)), key=device_capacity)


def sold_bytes(cluster: Cluster, needed_bytes: float) -> float:
    """Memory of a device on which some bytes fit: its driver keeps a little."""
    largest = _largest(cluster)
    return needed_bytes * SLACK * largest.memory_bytes / device_capacity(largest)


def fewer_wishes(model: CostModel, options: SearchOptions) -> Iterator[Relaxation]:
    """``fix`` and ``forbid`` whose removal alone helps."""
    fixed = wishes(options)
    for text in fixed:
        rest = tuple(other for other in fixed if other != text)
        if feasible(model, replace(options, fix=rest)):
            yield Relaxation(words=f"drop --fix {text}", factor=float("inf"))
    for text in options.forbid:
        rest = tuple(other for other in options.forbid if other != text)
        if feasible(model, replace(options, forbid=rest)):
            yield Relaxation(words=f"drop --forbid {text}", factor=float("inf"))


def allowed_sync(model: CostModel, options: SearchOptions) -> Iterator[Relaxation]:
    """A sync mode that is fixed but does not compete: let it."""
    mode = fixed_spec(options).get("sync")
    if not isinstance(mode, str) or mode in options.sync_modes():
        return
    if feasible(model, replace(options, sync=mode)):
        yield Relaxation(words=f"add --sync {mode}", factor=1.0)


def nearest_values(
    model: CostModel, options: SearchOptions, known: Callable[[str], list[Value]]
) -> Iterator[Relaxation]:
    """For a fixed number that no point has: the next one below and above that does."""
    for axis, value in fixed_spec(options).items():
        if isinstance(value, str):
            continue
        numbers = [n for n in known(axis) if isinstance(n, int)]
        if value in numbers:
            continue
        below = max((n for n in numbers if n < value), default=None)
        above = min((n for n in numbers if n > value), default=None)
        for near in filter(None, (below, above)):
            if feasible(model, replace(options, fix=_but(options, **{axis: near}))):
                factor = max(near / value, value / near)
                yield Relaxation(words=f"use --fix {axis}={near}", factor=factor)


def _but(options: SearchOptions, **changed: Value) -> Spec:
    """``fix`` with other values."""
    return {**fixed_spec(options), **changed}


def wishes(options: SearchOptions) -> tuple[str, ...]:
    """``fix`` as texts."""
    if isinstance(options.fix, tuple):
        return options.fix
    return tuple(f"{axis}={value}" for axis, value in options.fix.items())


def smaller_batch(model: CostModel, options: SearchOptions) -> Iterator[Relaxation]:
    """The largest halving of the global batch that fits in memory."""
    wanted = options.batch_for(model.profile, model.cluster.device_count)
    batch = wanted // 2
    while batch >= 1:
        if feasible(model, replace(options, global_batch=batch)):
            yield Relaxation(words=f"lower --global-batch to {batch}", factor=wanted / batch)
            return
        batch //= 2


def other_batch(model: CostModel, options: SearchOptions) -> Iterator[Relaxation]:
    """The nearest global batch, above or below, that the wanted degrees divide."""
    wanted = options.batch_for(model.profile, model.cluster.device_count)
    for batch in itertools.islice(_near(wanted, model.cluster.device_count), BATCHES):
        tried = replace(options, global_batch=batch)
        space = build_space(model.profile, model.cluster, tried)
        if space.groups and feasible(model, tried):
            factor = max(batch / wanted, wanted / batch)
            yield Relaxation(words=f"use --global-batch {batch}", factor=factor)
            return


def _near(wanted: int, step: int) -> Iterator[int]:
    """Numbers near one, then multiples of ``step`` around it."""
    seen = {wanted}
    close = (wanted + sign * by for by in range(1, 9) for sign in (1, -1))
    floor = wanted // step * step
    round_ = (floor + sign * by * step for by in range(BATCHES) for sign in (1, -1))
    for batch in itertools.chain(close, round_):
        if batch >= 1 and batch not in seen:
            seen.add(batch)
            yield batch


def more_devices(model: CostModel, options: SearchOptions) -> Iterator[Relaxation]:
    """The smallest doubling of the cluster that works, at the same global batch."""
    count = model.cluster.device_count
    batch = options.batch_for(model.profile, count)
    factor = 2
    while factor <= MAX_GROWTH:
        try:
            larger = changed_cluster(model.cluster, f"devices=x{factor}")
        except InputError:
            return
        grown = CostModel(model.profile, larger, options.precision)
        if feasible(grown, replace(options, global_batch=batch)):
            yield Relaxation(words=f"use {count * factor} devices", factor=factor)
            return
        factor *= 2
