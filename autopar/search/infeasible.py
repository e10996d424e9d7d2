"""When nothing fits: the tightest constraint with its numbers, and relaxations that were tried."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from autopar.core.errors import InfeasibleError, InputError
from autopar.core.units import format_bytes
from autopar.cost import CostModel, memory
from autopar.cost.price import layout_of
from autopar.results import RankedPlan
from autopar.search.change import changed_cluster
from autopar.search.options import SearchOptions
from autopar.search.parts import bytes_by_part, part_name
from autopar.search.plans import rank_plan
from autopar.search.space import Space, build_space, fixed_spec
from autopar.search.spec import Spec, Value
from autopar.search.variants import AXES as VARIANT_AXES
from autopar.search.walk import Walk

MAX_GROWTH = 64
"""Device counts up to this many times the cluster are tried."""
_UNLIMITED = "memory=1000000TiB"


def diagnose(
    model: CostModel, options: SearchOptions, space: Space, *, relaxations: bool
) -> InfeasibleError:
    """The error for a search that priced nothing.

    Args:
        model: Profile and cluster.
        options: What was asked.
        space: What was searched.
        relaxations: Try which changes help, for the hint.
    """
    if not space.groups:
        return _empty(model, options, space)
    reason = _no_device(model, options)
    if reason is not None:
        return InfeasibleError(reason, hint="use another cluster")
    smallest = least_memory(model, options)
    if smallest is None:
        modes = ", ".join(options.sync_modes())
        return InfeasibleError(
            f"no plan satisfies the constraints: none has ranks that can synchronise by {modes}"
            if options.sync != "exact"
            else "no plan satisfies the constraints",
            hint="drop --fix and --forbid, or allow --sync exact",
        )
    layout, _ = layout_of(smallest.plan, model)
    limits = [
        min(memory.rank_capacity(layout, q), options.max_memory_bytes or float("inf"))
        for q in range(layout.mesh.pp)
    ]
    needs = [
        memory.peak_estimate(part.total_bytes, "analytic").high for part in smallest.price.memory
    ]
    rank = max(range(len(needs)), key=lambda q: needs[q] - limits[q])
    capped = options.max_memory_bytes is not None and limits[rank] == options.max_memory_bytes
    holder = "--max-memory allows" if capped else "the device has"
    message = (
        f"no plan fits in memory: the smallest, {smallest.name}, needs "
        f"{format_bytes(needs[rank])} on pipeline rank {rank}, {holder} "
        f"{format_bytes(limits[rank])}; most of it are {_largest(smallest, rank)}"
    )
    hint = _relaxations(model, options, max(needs), capped) if relaxations else None
    return InfeasibleError(message, hint=hint)


def _largest(plan: RankedPlan, rank: int) -> str:
    """The two largest parts of a rank's memory."""
    parts = bytes_by_part(plan.price.memory[rank])
    first = sorted(parts, key=lambda key: -parts[key])[:2]
    return " and ".join(f"{part_name(key)} ({format_bytes(parts[key])})" for key in first)


def _empty(model: CostModel, options: SearchOptions, space: Space) -> InfeasibleError:
    """All points were rejected before pricing."""
    counts = Counter(space.rejected).most_common()
    reasons = ", ".join(f"{count} {reason}" for reason, count in counts)
    hints = _without_wishes(model, options)
    if space.rejected.get("batch not divisible by replicas"):
        hints.append("choose a --global-batch that more device counts divide")
    wrong = unknown_values(model, options, fixed_spec(options))
    return InfeasibleError(
        f"none of the {space.size} points of the space is left: {'; '.join([reasons, *wrong])}",
        hint="; or ".join(hints) if hints else "change --global-batch or the cluster",
    )


def unknown_values(model: CostModel, options: SearchOptions, wanted: Spec) -> list[str]:
    """For every wanted value that no point has: what its axis takes."""
    free = replace(options, fix={}, forbid=())
    everything = build_space(model.profile, model.cluster, free, model.strategies)
    found = []
    for axis, value in wanted.items():
        known = _values(everything, axis)
        if value not in known:
            shown = ", ".join(str(v) for v in known[:12]) + (" ..." if len(known) > 12 else "")
            found.append(f"{axis}={value} is not in the space, {axis} takes {shown}")
    return found


def _values(space: Space, axis: str) -> list[Value]:
    """Values of an axis that occur in a space, in rising order."""
    if axis in VARIANT_AXES:
        return space.values(axis)
    points = (group.point(group.variants.variants[0]) for group in space.groups)
    return sorted({point.value(axis) for point in points})


def _no_device(model: CostModel, options: SearchOptions) -> str | None:
    reasons = {
        model.compute.why_not(model.cluster.device(d)) for d in range(model.cluster.device_count)
    }
    return None if None in reasons else str(reasons.pop())


def least_memory(model: CostModel, options: SearchOptions) -> RankedPlan | None:
    """The plan whose fullest rank needs least, were memory unlimited.

    Among plans with one stage per rank where there are any; more stages keep more activations.
    """
    cluster = changed_cluster(model.cluster, _UNLIMITED)
    free = replace(options, objective="memory", max_memory_bytes=None, top=1)
    roomy = CostModel(model.profile, cluster, options.precision)
    space = build_space(model.profile, cluster, free, model.strategies)
    plain = space.keeping(lambda variant: variant.chunks == 1)
    walk = Walk(model=roomy, options=free, space=plain if plain.groups else space)
    walk.start()
    item = walk.next()
    return rank_plan(item.point, item.cuts, model, options, item.levels) if item else None


def feasible(model: CostModel, options: SearchOptions) -> bool:
    """True when some plan satisfies the constraints."""
    free = replace(options, objective="memory", top=1)
    walk = Walk(
        model=model,
        options=free,
        space=build_space(model.profile, model.cluster, free, model.strategies),
    )
    walk.start()
    return walk.next() is not None


def _relaxations(model: CostModel, options: SearchOptions, needed: float, capped: bool) -> str:
    """Changes that were tried and work, smallest first."""
    found = _without_wishes(model, options)
    size = format_bytes(needed * 1.01)
    capacity = max(model.cluster.device(d).memory_bytes for d in range(model.cluster.device_count))
    if capped and needed <= capacity:
        found.insert(0, f"raise --max-memory to {size}")
    else:
        found.append(f"use devices with at least {size}")
    batch = _smaller_batch(model, options)
    if batch is not None:
        found.append(f"lower --global-batch to {batch}")
    devices = _more_devices(model, options)
    if devices is not None:
        found.append(f"use {devices} devices")
    return "; or ".join(found)


def _without_wishes(model: CostModel, options: SearchOptions) -> list[str]:
    """``fix`` and ``forbid`` whose removal alone helps."""
    found = []
    fixed = (
        options.fix
        if isinstance(options.fix, tuple)
        else tuple(f"{axis}={value}" for axis, value in options.fix.items())
    )
    for text in fixed:
        rest = tuple(other for other in fixed if other != text)
        if feasible(model, replace(options, fix=rest)):
            found.append(f"drop --fix {text}")
    for text in options.forbid:
        rest = tuple(other for other in options.forbid if other != text)
        if feasible(model, replace(options, forbid=rest)):
            found.append(f"drop --forbid {text}")
    return found


def _smaller_batch(model: CostModel, options: SearchOptions) -> int | None:
    """The largest halving of the global batch that fits."""
    batch = options.batch_for(model.profile, model.cluster.device_count) // 2
    while batch >= 1:
        if feasible(model, replace(options, global_batch=batch)):
            return batch
        batch //= 2
    return None


def _more_devices(model: CostModel, options: SearchOptions) -> int | None:
    """The smallest doubling of the cluster that fits, at the same global batch."""
    count = model.cluster.device_count
    batch = options.batch_for(model.profile, count)
    factor = 2
    while factor <= MAX_GROWTH:
        try:
            larger = changed_cluster(model.cluster, f"devices=x{factor}")
        except InputError:
            return None
        grown = CostModel(model.profile, larger, options.precision)
        if feasible(grown, replace(options, global_batch=batch)):
            return count * factor
        factor *= 2
    return None
