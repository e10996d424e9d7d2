"""Peak bytes per pipeline coordinate, by liveness over the schedule's own action list.

The parts are put together by :mod:`autopar.calibration.peak` with the constants that published
peaks are validated with.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from autopar.calibration import peak
from autopar.calibration.memory import HOST_BYTES, REFERENCE_MULTIPROCESSORS
from autopar.calibration.peak import Value
from autopar.cluster import Device
from autopar.core.estimate import Estimate
from autopar.core.units import format_bytes
from autopar.cost.communication.sync import PLAIN
from autopar.cost.layout import Cuts, Layout
from autopar.cost.model import CostModel
from autopar.cost.tables import AffineTable, Table, prefix_differences
from autopar.cost.work import FULL, NONE, Vector
from autopar.results import MemoryBreakdown


def memories(layout: Layout, cuts: Cuts) -> Iterator[MemoryBreakdown]:
    """Bytes on the ranks of each pipeline coordinate at their peak, found as they are asked for.

    Activations are counted at the moment of the step when the microbatches in flight, weighted
    by what each stage keeps, are largest. A parameter that several stages of the rank read is
    counted once, one read on several ranks exists on each.
    """
    runs = RunBytes(layout=layout)
    return (_on_rank(runs, cuts, rank) for rank in range(layout.mesh.pp))


def _on_rank(bytes_: RunBytes, cuts: Cuts, rank: int) -> MemoryBreakdown:
    layout = bytes_.layout
    tables, model = layout.tables, layout.model
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
    working = max(float(bytes_.block_transient[i:j].max()) for i, j in spans)
    working += sum(float(bytes_.block_loss[i:j].sum()) for i, j in spans)
    update = bytes_.update_of(dense, experts)
    working += peak.update_bytes(model.memory, update, activations + working)
    weight, gradient, state = bytes_.per_element
    expert = bytes_.expert_per_element
    tensors = MemoryBreakdown(
        parameters_bytes=dense * weight + experts * expert[0] + buffer_bytes(layout),
        gradients_bytes=dense * gradient + experts * expert[1],
        optimizer_bytes=dense * state + experts * expert[2],
        activations_bytes=activations + input_bytes(layout),
        transient_bytes=working,
        communication_bytes=sum(bytes_.messages_of(i, j) for i, j in spans)
        + max(float(bytes_.block_gathered[i:j].max()) for i, j in spans)
        + float(bytes_.buckets(np.asarray(dense)))
        + (0.0 if layout.sync == PLAIN else layout.syncs[rank].held_bytes(dense)),
    )
    return replace(
        tensors,
        allocator_bytes=(margin(layout) - 1) * tensors.total_bytes,
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
        return layout.model.sizes.held(layout.zero, self._shards, layout.offload)

    @property
    def _shards(self) -> int:
        return self.layout.mesh.dp_shard * self.layout.mesh.cp if self.layout.zero else 1

    @cached_property
    def expert_per_element(self) -> tuple[float, float, float]:
        """The same per expert element; experts are divided by ``ep`` and not shared out."""
        return self.layout.model.sizes.held(0, 1, self.layout.offload)

    def update_of(self, dense: Value, experts: Value) -> Value:
        """Temporaries of the optimizer for elements on a rank."""
        per_element = 0.0 if self.layout.offload else self.layout.model.update_bytes
        return (dense / self._shards + experts) * per_element

    @cached_property
    def block_kept(self) -> Vector:
        """Bytes per microbatch in flight that each block keeps."""
        layout = self.layout
        work = layout.tables.work
        return work.kept(layout.levels, layout.microbatch_size) * layout.model.kept_scale

    @cached_property
    def _keeps_inputs(self) -> bool:
        """False when what enters a stage is counted with its first block already."""
        return any(level != FULL for level in self.layout.levels)

    def kept_of(self, first: int, stop: int) -> float:
        """Bytes per microbatch in flight of one run."""
        own = float(self.block_kept[first:stop].sum())
        passing = self._at(self.layout.tables.sent, first, stop)
        if self._keeps_inputs:
            passing += self._at(self.layout.tables.received, first, stop)
        return own + self.layout.model.memory.activation_factor * passing

    @cached_property
    def kept(self) -> Table:
        """Bytes per microbatch in flight."""
        return np.asarray(prefix_differences(self.block_kept) + self.passing)

    @cached_property
    def passing(self) -> Table:
        """Bytes per microbatch in flight of what enters a run and of what leaves it.

        Outputs stay to start the run's backward from.
        """
        fixed, per_sample = self.layout.tables.sent
        sent = fixed + per_sample * self.layout.microbatch_size
        passing = sent + self.received if self._keeps_inputs else sent
        return np.asarray(self.layout.model.memory.activation_factor * passing)

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
        """Working set of each block.

        Gradients of its widest op and of what entered it, and its activations when computed
        again. Logits are counted with the loss.
        """
        layout = self.layout
        work, samples = layout.tables.work, layout.microbatch_size
        again = np.where(np.asarray(layout.levels) > 0, work.at_level(NONE, samples), 0.0)
        widest = np.maximum(work.transient(samples) - work.logits(samples), 0.0)
        working = again + widest + work.at_level(FULL, samples)
        return np.asarray(layout.model.memory.transient_factor * working * layout.tables.scale)

    @cached_property
    def transient(self) -> Table:
        """The largest :attr:`block_transient` of a run."""
        return self.layout.tables.largest(self.block_transient)

    @cached_property
    def block_loss(self) -> Vector:
        """Logits, copies and gradients of each block's losses, beside what is kept of them."""
        layout = self.layout
        work = layout.tables.work
        logits = work.logits(layout.microbatch_size)
        whole = peak.loss_bytes(
            layout.model.memory, logits / work.item_bytes, layout.model.loss_factor
        )
        return np.maximum(whole - logits * layout.model.kept_scale, 0.0)

    @cached_property
    def loss(self) -> Table:
        """The sum of :attr:`block_loss` of a run."""
        return prefix_differences(self.block_loss)

    def messages_of(self, first: int, stop: int) -> float:
        """Buffers of what one run receives; what it sends is kept."""
        return self._at(self.layout.tables.received, first, stop)

    @property
    def messages(self) -> Table:
        """Buffers of what is received."""
        return self.received

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
    def runs(self) -> RunBytes:
        """Tables of the parts."""
        return RunBytes(layout=self.layout)

    @cached_property
    def constant(self) -> Table:
        """Tensor bytes whatever is in flight, computed again or in work."""
        layout, runs = self.layout, self.runs
        dense = self.take(layout.tables.parameters)
        fixed = (
            dense * sum(runs.per_element)
            + self.take(layout.tables.experts) * sum(runs.expert_per_element)
            + self.take(runs.messages)
            + self.take(runs.gathered)
            + runs.buckets(dense)
        )
        return np.asarray(fixed + buffer_bytes(layout) + input_bytes(layout))

    @cached_property
    def update(self) -> Table:
        """Temporaries of the optimizer."""
        tables = self.layout.tables
        return self.runs.update_of(self.take(tables.parameters), self.take(tables.experts))

    @cached_property
    def working(self) -> Table:
        """The block in work and the losses."""
        return np.asarray(self.take(self.runs.transient) + self.take(self.runs.loss))

    @cached_property
    def kept(self) -> Table:
        """Per microbatch in flight."""
        return self.take(self.runs.kept)

    def totals(self, rank: int) -> Table:
        """Peak bytes when the run is the only stage of a rank; a lower bound when it is not."""
        return self._totals(self._in_flight(rank), framework_bytes(self.layout, rank))

    def least(self) -> Table:
        """The same on the rank that has it easiest."""
        ranks = range(self.layout.mesh.pp)
        in_flight = min(self._in_flight(rank) for rank in ranks)
        return self._totals(in_flight, min(framework_bytes(self.layout, rank) for rank in ranks))

    def _totals(self, in_flight: int, context: float) -> Table:
        return self.with_freed(in_flight * self.kept + self.working, context)

    def with_freed(self, freed: Table, context: float) -> Table:
        """Peak bytes when forward and backward need ``freed`` that the update does not."""
        update = peak.update_bytes(self.layout.model.memory, self.update, freed)
        return peak.total_bytes(self.constant + freed + update, margin(self.layout), context)

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


def margin(layout: Layout) -> float:
    """What the allocator holds over what it serves."""
    return layout.model.memory.allocator_margin


def framework_bytes(layout: Layout, rank: int) -> float:
    """What a process has before the model exists, and its communicators."""
    device = layout.model.cluster.device(layout.groups[rank][0])
    mesh = layout.mesh
    degrees = (mesh.dp_replicate * mesh.dp_shard, mesh.tp, mesh.pp, mesh.cp, mesh.ep)
    count = peak.communicator_count(degrees, mesh.world_size)
    context, each = process_bytes(layout.model, device)
    return context + count * each


def process_bytes(model: CostModel, device: Device) -> tuple[float, float]:
    """Bytes of a process before the model exists, and of each communicator.

    Measured, communicators and all, where the profile was measured on the device; else by the
    constants.
    """
    c, measurement = model.memory, model.profile.measurement
    if measurement is not None and model.compute.measured_on(device):
        return measurement.resident_bytes + model.cluster.overhead.rank_bytes, 0.0
    if device.kind == "cpu":
        return HOST_BYTES, 0.0
    multiprocessors = float(device.multiprocessors or REFERENCE_MULTIPROCESSORS)
    return peak.context_bytes(c, multiprocessors), c.communicator_bytes


def capacity_bytes(layout: Layout) -> float:
    """Memory of the smallest device used."""
    kinds = layout.model.kinds(layout.placement, layout.placement)
    return min(device.memory_bytes for device, _ in kinds)


def rank_capacity(layout: Layout, rank: int) -> float:
    """Memory that ranks of a pipeline coordinate can allocate, on the smallest device."""
    kinds = layout.model.kinds(layout.placement, layout.groups[rank])
    return min(device_capacity(device) for device, _ in kinds)


def device_capacity(device: Device) -> float:
    """Memory of a device that processes can allocate."""
    size = float(device.memory_bytes)
    return size if device.kind == "cpu" else peak.usable_bytes(size)


def peak_estimate(model: CostModel, total_bytes: float) -> Estimate:
    """The peak with its range; feasibility uses the upper end."""
    c = model.memory
    return Estimate(
        value=total_bytes,
        low=total_bytes * c.low_factor,
        high=total_bytes * c.high_factor,
        source="calibrated" if c.fitted_on else "analytic",
    )


def assumed(model: CostModel) -> tuple[str, ...]:
    """What the memory of a plan rests on, for its assumptions."""
    c = model.memory
    if not c.fitted_on:
        return (
            f"memory of a CPU rank: torch and process group {format_bytes(HOST_BYTES)} where not "
            f"measured, up to {c.high_factor - 1:.0%} more than counted (assumed)",
        )
    peaks = sum(c.fitted_on["peaks"].values())
    return (
        f"memory constants of accelerators: fitted on {peaks} published peaks (the allocator "
        f"holds {c.allocator_margin - 1:.1%} more than it serves; context and libraries "
        f"{format_bytes(c.framework_bytes)} at {REFERENCE_MULTIPROCESSORS:.0f} multiprocessors, "
        f"{format_bytes(c.communicator_bytes)} a communicator; peaks of frameworks held out lay "
        f"at {c.low_factor:.2f} to {c.high_factor:.2f} of the prediction)",
    )
