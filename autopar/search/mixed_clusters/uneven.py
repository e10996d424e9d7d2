"""What uneven shares of the batch would be worth on unlike devices: plans have even ones only.

Estimated is plain data parallelism over all devices of a mixed cluster, each with its own number
of equal microbatches. The answer goes into the explanation, beside the best even plan.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from autopar.cluster import Device
from autopar.core.units import format_seconds
from autopar.cost import CostModel, memory
from autopar.cost.layout import Layout
from autopar.search.options import SearchOptions
from autopar.search.space.build import divisors
from autopar.search.space.plans import layout_for
from autopar.search.space.point import Point
from autopar.search.stages.shares import Replica, split_batch


@dataclass(frozen=True, kw_only=True)
class UnevenSplit:
    """A split of the batch over all devices.

    Attributes:
        microbatch_size: Samples.
        microbatches: Of each device in order.
        step_s: Estimated step time.
    """

    microbatch_size: int
    microbatches: tuple[int, ...]
    step_s: float

    def words(self, model: CostModel, best_step_s: float) -> str:
        """One sentence for people, beside the step time of the best even plan."""
        cluster = model.cluster
        shares = Counter(
            (cluster.device(d).name, count * self.microbatch_size)
            for d, count in enumerate(self.microbatches)
        )
        parts = [
            f"{samples} samples on each of {devices} {name}"
            for (name, samples), devices in sorted(shares.items())
        ]
        change = self.step_s / best_step_s - 1
        return (
            "Plans give every replica the same share of the batch; data parallelism with "
            f"{', '.join(parts)} would take about {format_seconds(self.step_s)} per step, "
            f"{change:+.1%} against this plan."
        )


def best_uneven_split(model: CostModel, options: SearchOptions) -> UnevenSplit | None:
    """The fastest uneven split of data parallelism, with and without recompute.

    Looked at are all microbatch sizes that leave every device at least one microbatch. A device
    takes ``microbatches x (forward + backward)``; gradients are added to those of earlier
    microbatches and synchronised as in an even plan. ``None`` when no split fits.
    """
    cluster = model.cluster
    batch = options.batch_for(model.profile, cluster.device_count)
    found = [
        split
        for size in divisors(batch)
        if batch // size >= cluster.device_count and size >= model.profile.smallest_microbatch
        for recompute in ("none", "full")
        if (split := _split(model, options, batch // size, size, recompute)) is not None
    ]
    return min(found, key=lambda split: split.step_s, default=None)


def _split(
    model: CostModel, options: SearchOptions, total: int, size: int, recompute: str
) -> UnevenSplit | None:
    devices = model.cluster.device_count
    point = Point(
        dp_replicate=devices,
        microbatch_size=size,
        microbatches=-(-total // devices),
        recompute=recompute,
    )
    layout = layout_for(point, model, options)
    if not _fits(layout, options):
        return None
    shares = split_batch(total, _replicas(layout))
    cost = layout.stage_costs((0, len(model.profile.blocks)))[0]
    tail_s = cost.exposed_sync_s + cost.optimizer_s + layout.overhead_s
    return UnevenSplit(
        microbatch_size=size, microbatches=shares.units, step_s=shares.slowest_s + tail_s
    )


def _fits(layout: Layout, options: SearchOptions) -> bool:
    needed = next(memory.memories(layout, (0, layout.tables.count))).total_bytes
    room = memory.rank_capacity(layout, 0)
    limit = min(room, options.max_memory_bytes or room)
    return memory.peak_estimate(layout.model, needed).high <= limit


def _replicas(layout: Layout) -> list[Replica]:
    """Time of every device by its number of microbatches."""
    model, known = layout.model, {}
    result = []
    for device_id in layout.placement:
        device = model.cluster.device(device_id)
        busy = layout.communication.ranks_on_host(device_id)
        if (device.name, busy) not in known:
            known[device.name, busy] = _replica(layout, device, busy)
        result.append(known[device.name, busy])
    return result


def _replica(layout: Layout, device: Device, busy: int) -> Replica:
    """Time of a kind of device with ``busy`` ranks on its host."""
    model, split = layout.model, layout.split
    adding_s = 2 * float(model.accumulate(split, 2, device, busy).sum())
    around = layout.around(0)
    span = model.span_seconds(
        split, layout.microbatch_size, 1, device, busy, layout.levels, around
    )
    # The first microbatch has nothing to add its gradients to.
    return Replica(fixed_s=-adding_s, unit_s=span.total + adding_s)
