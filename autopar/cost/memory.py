"""Peak bytes per pipeline coordinate, by liveness over the schedule's own action list."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from autopar.cluster import Device
from autopar.core.estimate import Estimate, Source
from autopar.cost import constants as k
from autopar.cost.layout import Cuts, Layout
from autopar.cost.tables import AffineTable, Table, prefix_differences
from autopar.cost.work import FULL, Vector
from autopar.results import MemoryBreakdown


def memory_of_rank(layout: Layout, cuts: Cuts, rank: int) -> MemoryBreakdown:
    """Bytes on the ranks of one pipeline coordinate at their peak.

    Activations are counted at the moment of the step when the microbatches in flight, weighted
    by what each stage keeps, are largest. A parameter that several stages of the rank read is
    counted once, one read on several ranks exists on each.
    """
    tables = layout.tables
    bytes_ = RunBytes(layout=layout)
    stages = layout.stages_of(rank)
    spans = [(cuts[s], cuts[s + 1]) for s in stages]
    dense = sum(float(tables.parameters[i, j]) for i, j in spans)
    if len(spans) > 1:
        dense -= _shared_between(layout, spans)
    experts = sum(float(tables.experts[i, j]) for i, j in spans)
    held = [bytes_.kept_of(i, j) for i, j in spans]
    activations = max(
        sum(count * size for count, size in zip(counts, held, strict=True))
        for counts in layout.live(rank)
    )
    weight, gradient, state = bytes_.per_element
    expert = bytes_.expert_per_element
    return MemoryBreakdown(
        parameters_bytes=dense * weight + experts * expert[0] + buffer_bytes(layout),
        gradients_bytes=dense * gradient + experts * expert[1],
        optimizer_bytes=dense * state + experts * expert[2],
        activations_bytes=activations + input_bytes(layout),
        transient_bytes=max(float(bytes_.block_transient[i:j].max()) for i, j in spans),
        communication_bytes=sum(bytes_.messages_of(i, j) for i, j in spans)
        + max(float(bytes_.block_gathered[i:j].max()) for i, j in spans)
        + float(bytes_.buckets(np.asarray(dense)))
        + layout.syncs[rank].held_bytes(dense),
        framework_bytes=framework_bytes(layout, rank),
    )


@dataclass(frozen=True, kw_only=True)
class RunBytes:
    """Bytes of any run of blocks on one rank, as tables over block boundaries.

    Attributes:
        layout: Everything but the stage boundaries.
    """

    layout: Layout

    @cached_property
    def per_element(self) -> tuple[float, float, float]:
        """Weight, gradient and state bytes per dense parameter element."""
        layout = self.layout
        shards = layout.mesh.dp_shard * layout.mesh.cp if layout.zero else 1
        return layout.model.sizes.held(layout.zero, shards, layout.offload)

    @cached_property
    def expert_per_element(self) -> tuple[float, float, float]:
        """The same per expert element; experts are divided by ``ep`` and not shared out."""
        return self.layout.model.sizes.held(0, 1, self.layout.offload)

    @cached_property
    def block_kept(self) -> Vector:
        """Bytes per microbatch in flight that each block keeps."""
        layout = self.layout
        work = layout.tables.work
        return work.kept(layout.levels, layout.microbatch_size) * layout.tables.scale

    @cached_property
    def _keeps_inputs(self) -> bool:
        """False when what enters a stage is counted with its first block already."""
        return any(level != FULL for level in self.layout.levels)

    def kept_of(self, first: int, stop: int) -> float:
        """Bytes per microbatch in flight of one run."""
        own = float(self.block_kept[first:stop].sum())
        return own + (
            self._at(self.layout.tables.received, first, stop) if self._keeps_inputs else 0
        )

    @cached_property
    def kept(self) -> Table:
        """Bytes per microbatch in flight."""
        kept = prefix_differences(self.block_kept)
        return np.asarray(kept + self.received) if self._keeps_inputs else kept

    def _at(self, table: AffineTable, first: int, stop: int) -> float:
        fixed, per_sample = table
        samples = self.layout.microbatch_size
        return float(fixed[first, stop] + per_sample[first, stop] * samples)

    @cached_property
    def received(self) -> Table:
        """Bytes that enter a run from earlier blocks, per microbatch."""
        fixed, per_sample = self.layout.tables.received
        return np.asarray(fixed + per_sample * self.layout.microbatch_size)

    @cached_property
    def block_transient(self) -> Vector:
        """Workspace of each block's largest op, and its activations when computed again."""
        layout = self.layout
        work, samples = layout.tables.work, layout.microbatch_size
        again = np.where(
            np.asarray(layout.levels) > 0,
            work.at_level(0, samples) - work.kept(layout.levels, samples),
            0.0,
        )
        workspace = k.TRANSIENT_COPIES.value * work.transient(samples)
        return np.asarray((workspace + np.maximum(again, 0.0)) * layout.tables.scale)

    @cached_property
    def transient(self) -> Table:
        """The largest :attr:`block_transient` of a run."""
        return self.layout.tables.largest(self.block_transient)

    def messages_of(self, first: int, stop: int) -> float:
        """Buffers of what one run receives and sends."""
        tables = self.layout.tables
        return self._at(tables.received, first, stop) + self._at(tables.sent, first, stop)

    @cached_property
    def messages(self) -> Table:
        """Buffers of what is received and sent."""
        fixed, per_sample = self.layout.tables.sent
        return np.asarray(self.received + fixed + per_sample * self.layout.microbatch_size)

    @cached_property
    def block_gathered(self) -> Vector:
        """Whole units beside their shards: weights of two (ZeRO-3), gradients of two (ZeRO-2)."""
        layout = self.layout
        sizes = layout.model.sizes
        per_element = (sizes.weight if layout.zero >= 3 else 0.0) + (
            sizes.gradient if layout.zero >= 2 else 0.0
        )
        return np.asarray(GATHERED_UNITS * per_element * layout.tables.work.parameters)

    @cached_property
    def gathered(self) -> Table:
        """The largest :attr:`block_gathered` of a run."""
        return self.layout.tables.largest(self.block_gathered)

    def buckets(self, elements: Table) -> Table:
        """Two gradient buckets under way when replicas reduce whole gradients."""
        layout = self.layout
        if layout.mesh.replicas * layout.mesh.cp < 2 or layout.zero >= 2:
            return np.zeros_like(elements)
        size = elements * layout.model.sizes.gradient
        return np.minimum(size, 2.0 * layout.bucket_bytes)


GATHERED_UNITS = 2
"""The unit in use and the one that is fetched ahead (FSDP's implicit prefetch)."""


@dataclass(frozen=True, kw_only=True)
class SpanMemory:
    """Peak bytes of a rank that holds one run of blocks, as tables over the runs.

    Attributes:
        layout: Everything but the stage boundaries.
        take: Restricts a full table to the runs of interest.
    """

    layout: Layout
    take: Callable[[Table], Table]

    @cached_property
    def _parts(self) -> tuple[Table, Table]:
        """Bytes whatever is in flight, and bytes per microbatch in flight."""
        layout, runs = self.layout, RunBytes(layout=self.layout)
        dense = self.take(layout.tables.parameters)
        fixed = (
            dense * sum(runs.per_element)
            + self.take(layout.tables.experts) * sum(runs.expert_per_element)
            + self.take(runs.transient)
            + self.take(runs.messages)
            + self.take(runs.gathered)
            + runs.buckets(dense)
        )
        return fixed + buffer_bytes(layout) + input_bytes(layout), self.take(runs.kept)

    def totals(self, rank: int) -> Table:
        """Peak bytes when the run is the only stage of a rank; a lower bound when it is not."""
        fixed, kept = self._parts
        return np.asarray(
            fixed + self._in_flight(rank) * kept + framework_bytes(self.layout, rank)
        )

    def least(self) -> Table:
        """The same on the rank that has it easiest."""
        fixed, kept = self._parts
        ranks = range(self.layout.mesh.pp)
        in_flight = min(self._in_flight(rank) for rank in ranks)
        framework = min(framework_bytes(self.layout, rank) for rank in ranks)
        return np.asarray(fixed + in_flight * kept + framework)

    def _in_flight(self, rank: int) -> int:
        single = self.layout.stages == self.layout.mesh.pp
        return self.layout.live(rank)[0][0] if single else 1


def _shared_between(layout: Layout, spans: list[tuple[int, int]]) -> float:
    """Elements that a sum over the spans counts more than once."""
    again = 0.0
    for _, elements, blocks in layout.tables.tied:
        holders = sum(any(i <= b < j for b in blocks) for i, j in spans)
        again += elements * max(0, holders - 1)
    return again


def buffer_bytes(layout: Layout) -> float:
    """Buffers, counted whole on each rank: they are small and may be read anywhere."""
    return layout.model.profile.buffer_bytes


def input_bytes(layout: Layout) -> float:
    """The replica's batch of a step, present on every rank of the replica."""
    samples = layout.microbatch_size * layout.microbatches
    return layout.model.profile.input_bytes * samples


def framework_bytes(layout: Layout, rank: int) -> float:
    """Resident memory before the model exists: measured, else the stated constant."""
    device = layout.model.cluster.device(layout.groups[rank][0])
    measurement = layout.model.profile.measurement
    if measurement is not None and layout.model.compute.measured_on(device):
        return measurement.resident_bytes + layout.model.cluster.overhead.rank_bytes
    return assumed_framework(device).value


def assumed_framework(device: Device) -> k.Constant:
    """The constant that stands for the framework on a device."""
    return k.CPU_FRAMEWORK_BYTES if device.kind == "cpu" else k.GPU_FRAMEWORK_BYTES


def capacity_bytes(layout: Layout) -> float:
    """Memory of the smallest device used."""
    kinds = layout.model.kinds(layout.placement, layout.placement)
    return min(device.memory_bytes for device, _ in kinds)


def rank_capacity(layout: Layout, rank: int) -> float:
    """Memory of the smallest device of a pipeline coordinate."""
    kinds = layout.model.kinds(layout.placement, layout.groups[rank])
    return min(device.memory_bytes for device, _ in kinds)


def peak_estimate(total_bytes: float, source: Source) -> Estimate:
    """The peak with the allocator's margin as its upper end; feasibility uses the upper end."""
    high = math.fsum([total_bytes, total_bytes * k.MEMORY_MARGIN.value])
    return Estimate(value=total_bytes, low=total_bytes, high=high, source=source)
