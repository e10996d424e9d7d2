"""When nothing fits: the tightest constraint with its numbers, and relaxations that were tried."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

from autopar.core.errors import InfeasibleError
from autopar.core.units import format_bytes
from autopar.cost import CostModel, memory
from autopar.cost.price import layout_of
from autopar.results import RankedPlan
from autopar.search.explain import relax
from autopar.search.explain.change import changed_cluster
from autopar.search.explain.parts import bytes_by_part, part_name
from autopar.search.options import SearchOptions
from autopar.search.space.build import Space, build_space, fixed_spec
from autopar.search.space.plans import rank_plan
from autopar.search.space.spec import Spec, Value
from autopar.search.space.variants import AXES as VARIANT_AXES
from autopar.search.walk.best_first import Walk

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
    needs = [memory.peak_estimate(model, part.total_bytes).high for part in smallest.price.memory]
    rank = max(range(len(needs)), key=lambda q: needs[q] - limits[q])
    capped = options.max_memory_bytes is not None and limits[rank] == options.max_memory_bytes
    holder = "--max-memory allows" if capped else "the device has"
    message = (
        f"no plan fits in memory: the smallest, {smallest.name}, needs "
        f"{format_bytes(needs[rank])} on pipeline rank {rank}, {holder} "
        f"{format_bytes(limits[rank])}; most of it is {_largest(smallest, rank)}"
    )
    if not relaxations:
        return InfeasibleError(message, hint=None)
    found = [
        *relax.more_memory(model, options, needs[rank], limits[rank], capped),
        *relax.smaller_batch(model, options),
        *relax.more_devices(model, options),
        *relax.fewer_wishes(model, options),
    ]
    return InfeasibleError(message, hint=relax.in_words(found))


def _largest(plan: RankedPlan, rank: int) -> str:
    """The two largest parts of a rank's memory."""
    parts = bytes_by_part(plan.price.memory[rank])
    first = sorted(parts, key=lambda key: -parts[key])[:2]
    return " and ".join(f"{part_name(key)} ({format_bytes(parts[key])})" for key in first)


def _empty(model: CostModel, options: SearchOptions, space: Space) -> InfeasibleError:
    """All points were rejected before pricing."""
    conflicts = _conflicts(model, options) or unknown_values(model, options, fixed_spec(options))
    counts = ", ".join(f"{count:,} {reason}" for reason, count in space.rejected.most_common())
    message = f"none of the {space.size:,} points of the space is left"
    found = [
        *relax.allowed_sync(model, options),
        *relax.nearest_values(model, options, known_values(model, options)),
        *relax.other_batch(model, options),
        *(relax.more_devices(model, options) if conflicts else ()),
        *relax.fewer_wishes(model, options),
    ]
    return InfeasibleError(
        f"{'; '.join(conflicts)}: {message} ({counts})" if conflicts else f"{message}: {counts}",
        hint=relax.in_words(found) if found else "change --global-batch or the cluster",
    )


def _conflicts(model: CostModel, options: SearchOptions) -> list[str]:
    """Fixed degrees that devices, batch or model cannot meet, with the numbers."""
    spec, count = fixed_spec(options), model.cluster.device_count
    degrees = {axis: int(spec[axis]) for axis in ("dp", "tp", "pp", "cp") if axis in spec}
    found = []
    need = math.prod(degrees.values())
    words = " x ".join(f"{axis}={degree}" for axis, degree in degrees.items())
    if need > count:
        found.append(f"{words} needs {need} devices, the cluster has {count}")
    batch, replicas = options.batch_for(model.profile, count), degrees.get("dp", 1)
    each = replicas * int(spec.get("microbatch_size", 1))
    if batch % each:
        who = [f"{axis}={spec[axis]}" for axis in ("dp", "microbatch_size") if axis in spec]
        found.append(f"{' x '.join(who)} does not divide a global batch of {batch}")
    blocks = len(model.profile.blocks)
    if degrees.get("pp", 1) > blocks:
        found.append(f"pp={degrees['pp']} needs as many blocks, the model has {blocks}")
    return found


def unknown_values(model: CostModel, options: SearchOptions, wanted: Spec) -> list[str]:
    """For every wanted value that no point has: what its axis takes."""
    found, values = [], known_values(model, options)
    for axis, value in wanted.items():
        known = values(axis)
        if value not in known:
            shown = ", ".join(str(v) for v in known[:12]) + (" ..." if len(known) > 12 else "")
            found.append(f"{axis}={value} is not in the space, {axis} takes {shown}")
    return found


def known_values(model: CostModel, options: SearchOptions) -> Callable[[str], list[Value]]:
    """Axis -> values that occur in the space without ``fix`` and ``forbid``."""
    free = replace(options, fix={}, forbid=())
    everything = build_space(model.profile, model.cluster, free)
    return lambda axis: _values(everything, axis)


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
    space = build_space(model.profile, cluster, free)
    plain = space.keeping(lambda variant: variant.chunks == 1)
    walk = Walk(model=roomy, options=free, space=plain if plain.groups else space)
    walk.start()
    item = walk.next()
    return rank_plan(item.point, item.cuts, model, options, item.levels) if item else None
