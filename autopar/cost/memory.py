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
from autopar.cost.tables import Table
from autopar.results import MemoryBreakdown


def memory_of_rank(layout: Layout, cuts: Cuts, rank: int) -> MemoryBreakdown:
    """Bytes on the ranks of one pipeline coordinate at their peak.

    Activations are counted at the moment of the step when the microbatches in flight, weighted
    by what each stage keeps, are largest. A parameter that several stages of the rank read is
    counted once, one read on several ranks exists on each.
    """
    tables = layout.model.tables
    kept, transient, messages = layout.memory_tables
    stages = range(rank, layout.stages, layout.mesh.pp)
    spans = [(cuts[s], cuts[s + 1]) for s in stages]
    parameters = sum(float(tables.parameters[i, j]) for i, j in spans)
    if len(spans) > 1:
        parameters -= _shared_between(layout, spans)
    held = [float(kept[i, j]) for i, j in spans]
    activations = max(
        sum(count * size for count, size in zip(counts, held, strict=True))
        for counts in layout.live[rank]
    )
    gradients, state = layout.state_factor
    return MemoryBreakdown(
        parameters_bytes=parameters + buffer_bytes(layout),
        gradients_bytes=parameters * gradients,
        optimizer_bytes=parameters * state,
        activations_bytes=activations + input_bytes(layout),
        transient_bytes=max(float(transient[i, j]) for i, j in spans),
        communication_bytes=sum(float(messages[i, j]) for i, j in spans)
        + bucket_bytes(layout, parameters),
        framework_bytes=framework_bytes(layout, rank),
    )


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
        layout = self.layout
        kept, transient, messages = (self.take(table) for table in layout.memory_tables)
        parameters = self.take(layout.model.tables.parameters)
        gradients, state = layout.state_factor
        fixed = parameters * (1 + gradients + state) + transient + messages
        if layout.mesh.replicas > 1:
            fixed = fixed + np.minimum(parameters, 2.0 * layout.bucket_bytes)
        return fixed + buffer_bytes(layout) + input_bytes(layout), kept

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
        return self.layout.live[rank][0][0] if single else 1


def _shared_between(layout: Layout, spans: list[tuple[int, int]]) -> float:
    """Bytes that a sum over the spans counts more than once."""
    again = 0.0
    for _, size, blocks in layout.model.tables.tied:
        holders = sum(any(i <= b < j for b in blocks) for i, j in spans)
        again += size * max(0, holders - 1)
    return again


def buffer_bytes(layout: Layout) -> float:
    """Buffers, counted whole on each rank: they are small and may be read anywhere."""
    return layout.model.profile.buffer_bytes


def input_bytes(layout: Layout) -> float:
    """The replica's batch of a step, present on every rank of the replica."""
    samples = layout.microbatch_size * layout.microbatches
    return layout.model.profile.input_bytes * samples


def bucket_bytes(layout: Layout, parameters: float) -> float:
    """Two gradient buckets under way when there are replicas."""
    if layout.mesh.replicas < 2:
        return 0.0
    return min(parameters, 2.0 * layout.bucket_bytes)


def framework_bytes(layout: Layout, rank: int) -> float:
    """Resident memory before the model exists: measured, else the stated constant."""
    device = layout.model.cluster.device(layout.groups[rank][0])
    measurement = layout.model.profile.measurement
    if measurement is not None and layout.model.compute.measured_on(device):
        return measurement.resident_bytes
    return assumed_framework(device).value


def assumed_framework(device: Device) -> k.Constant:
    """The constant that stands for the framework on a device."""
    return k.CPU_FRAMEWORK_BYTES if device.kind == "cpu" else k.GPU_FRAMEWORK_BYTES


def capacity_bytes(layout: Layout) -> float:
    """Memory of the smallest device used."""
    devices = {layout.model.cluster.device(d).name: d for d in layout.placement}
    return min(layout.model.cluster.device(d).memory_bytes for d in devices.values())


def rank_capacity(layout: Layout, rank: int) -> float:
    """Memory of the smallest device of a pipeline coordinate."""
    devices = {layout.model.cluster.device(d).name: d for d in layout.groups[rank]}
    return min(layout.model.cluster.device(d).memory_bytes for d in devices.values())


def peak_estimate(total_bytes: float, source: Source) -> Estimate:
    """The peak with the allocator's margin as its upper end; feasibility uses the upper end."""
    high = math.fsum([total_bytes, total_bytes * k.MEMORY_MARGIN.value])
    return Estimate(value=total_bytes, low=total_bytes, high=high, source=source)
