"""CostModel: what all plans of one profile on one cluster share, computed once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from autopar.calibration.memory import LOSS_FACTORS, MemoryConstants
from autopar.cluster import Cluster, Device
from autopar.cost.communication.collectives import CommunicationModel
from autopar.cost.communication.routes import Routes
from autopar.cost.computation.blocks import (
    BlockSeconds,
    Computing,
    Surroundings,
    block_seconds,
    computing_seconds,
)
from autopar.cost.computation.compute import ComputeModel
from autopar.cost.computation.roofline import Phases
from autopar.cost.computation.spans import SpanSeconds, recompute_seconds
from autopar.cost.simulation.simulate import Program, compile_program
from autopar.cost.states import MASTER_BYTES, ParameterBytes, auto_precision
from autopar.cost.tables import Table, Tables
from autopar.cost.work import Levels, StageWork, Vector
from autopar.graph import GraphProfile
from autopar.schedules import SCHEDULES, AbstractSchedule
from autopar.strategies import Split, Strategies

Peaks = tuple[tuple[int, ...], ...]
KEPT_ACTIONS = 4_000
"""Longer programs, of a third of a MiB and more, are dropped with the model that needed them."""


class _OfProfile:
    """What models of one profile share on any cluster, kept with the profile.

    Args:
        profile: What is trained.

    Attributes:
        works: Blocks as divided.
        tables: Their byte tables, by the split and the stored bytes per profiled byte.
        peaks: Microbatches in flight.
        programs: Compiled action lists of up to :data:`KEPT_ACTIONS` actions.
    """

    def __init__(self, profile: GraphProfile) -> None:
        self.strategies = profile.derived(Strategies)
        self.works: dict[Split, StageWork] = {}
        self.tables: dict[tuple[Split, float], Tables] = {}
        self.peaks: dict[tuple[str, int, int, int, int], Peaks] = {}
        self.programs: dict[tuple[str, int, int, int], Program] = {}


class CostModel:
    """Caches behind :func:`autopar.cost.price`; make one and pass it when pricing many plans.

    Args:
        profile: What is trained.
        cluster: Where.
        precision: Compute dtype, or ``auto``, see :func:`autopar.cost.states.auto_precision`.

    Attributes:
        memory: Constants of the memory model: the ones that published peaks were fitted with, or
            those of hosts.
        loss_factor: What a loss keeps of its logits, see ``LOSS_FACTORS``: torch's own.
        update_bytes: Temporaries of the optimizer per element; loops over single parameters on
            CPUs have next to none.

    Raises:
        InputError: Unknown precision.
    """

    def __init__(
        self,
        profile: GraphProfile,
        cluster: Cluster,
        precision: str = "float32",
    ) -> None:
        self.profile = profile
        self.cluster = cluster
        precision = auto_precision(cluster) if precision == "auto" else precision
        self.precision = precision
        ratio = profile.optimizer.state_bytes_per_parameter_byte
        self.sizes = ParameterBytes.of(precision, ratio)
        kinds = {group.machine.device.kind for group in cluster.groups}
        on_hosts = kinds == {"cpu"}
        shipped = MemoryConstants.shipped().unseen()
        self.memory = MemoryConstants.host() if on_hosts else shipped
        loss = "float32" if self.sizes.weight >= MASTER_BYTES else "eager"
        self.loss_factor = LOSS_FACTORS[loss]
        self.update_bytes = 0.0 if on_hosts else self.sizes.update
        self._of_profile = profile.derived(_OfProfile)
        self.strategies = self._of_profile.strategies
        self.compute = ComputeModel(profile, cluster, precision)
        self._schedules: dict[str, AbstractSchedule] = {}
        self._programs: dict[tuple[str, int, int, int], Program] = {}
        self._blocks: dict[object, BlockSeconds] = {}
        self._computing: dict[object, Computing] = {}
        self._many: dict[object, tuple[dict[float, int], Computing]] = {}
        self._phases: dict[object, tuple[dict[float, int], Phases]] = {}
        self._spans: dict[object, SpanSeconds] = {}
        self._communication: dict[object, CommunicationModel] = {}
        self._kinds: dict[object, tuple[tuple[Device, int], ...]] = {}
        self.shared: dict[object, Table] = {}
        """Tables that layouts with equal parts have in common, filled by who makes them."""
        self._routes: dict[tuple[object, int], Routes] = {}
        self._firsts: dict[int, tuple[int, ...]] = {}

    def on(self, cluster: Cluster) -> CostModel:
        """The model of another cluster, with what does not depend on it shared."""
        other = CostModel(self.profile, cluster, self.precision)
        other._schedules, other._programs = self._schedules, self._programs
        return other

    @property
    def kept_scale(self) -> float:
        """Bytes kept per profiled byte that ops save for backward."""
        return self.compute.activation_scale * self.memory.activation_factor

    def work(self, split: Split) -> StageWork:
        """The blocks as divided."""
        works = self._of_profile.works
        if split not in works:
            works[split] = StageWork(strategies=self.strategies, split=split)
        return works[split]

    def tables(self, split: Split) -> Tables:
        """Byte tables of the blocks as divided."""
        tables, key = self._of_profile.tables, (split, self.compute.activation_scale)
        if key not in tables:
            tables[key] = Tables(self.work(split), self.compute.activation_scale)
        return tables[key]

    def schedule(self, name: str) -> AbstractSchedule:
        """A registered schedule.

        Raises:
            InputError: Unknown name.
        """
        if name not in self._schedules:
            self._schedules[name] = SCHEDULES.load(name)
        return self._schedules[name]

    def program(self, schedule: str, ranks: int, stages: int, microbatches: int) -> Program:
        """The compiled action lists.

        Raises:
            InputError: Unknown schedule, or it cannot run with these numbers.
        """
        key = (schedule, ranks, stages, microbatches)
        short, long = self._of_profile.programs, self._programs
        if key not in short and key not in long:
            found = compile_program(self.schedule(schedule), *key[1:])
            kept = short if len(found.order) <= KEPT_ACTIONS else long
            kept[key] = found
        return short[key] if key in short else long[key]

    def in_flight(
        self, schedule: str, ranks: int, stages: int, microbatches: int, rank: int
    ) -> Peaks:
        """Microbatches in flight per local stage of a pipeline coordinate, at its peaks."""
        peaks, key = self._of_profile.peaks, (schedule, ranks, stages, microbatches, rank)
        if key not in peaks:
            peaks[key] = self.schedule(schedule).rank_peaks(rank, ranks, stages, microbatches)
        return peaks[key]

    def communication(self, placement: tuple[int, ...]) -> CommunicationModel:
        """Communication between the devices that take part."""
        key = self._key(placement)
        if key not in self._communication:
            self._communication[key] = CommunicationModel(self.cluster, placement)
        return self._communication[key]

    def routes(self, placement: tuple[int, ...], pp: int) -> Routes:
        """Messages between the ``pp`` equal parts of a placement."""
        key = (self._key(placement), pp)
        if key not in self._routes:
            size = len(placement) // pp
            groups = tuple(placement[q * size : (q + 1) * size] for q in range(pp))
            self._routes[key] = Routes(self.cluster, self.communication(placement), groups)
        return self._routes[key]

    def _key(self, placement: tuple[int, ...]) -> object:
        """Stands for a placement: hashing thousands of ids again and again would show."""
        first = self._firsts.get(len(placement)) is placement
        return len(placement) if first else placement

    def first_devices(self, count: int) -> tuple[int, ...]:
        """Devices 0, 1, 2 ..."""
        if count not in self._firsts:
            self._firsts[count] = tuple(range(count))
        return self._firsts[count]

    def kinds(
        self, placement: tuple[int, ...], devices: tuple[int, ...]
    ) -> tuple[tuple[Device, int], ...]:
        """Different ``(device, busy devices on its host)`` among some devices of a placement."""
        communication = self.communication(placement)
        if communication.shapes.regular:
            devices = devices[:1]
        key = (id(communication), devices)
        if key not in self._kinds:
            found = {
                (self.cluster.device(d).name, communication.ranks_on_host(d)): d for d in devices
            }
            self._kinds[key] = tuple(
                (self.cluster.device(d), busy) for (_, busy), d in found.items()
            )
        return self._kinds[key]

    def block_seconds(
        self, split: Split, samples: int, device: Device, busy: int, around: Surroundings
    ) -> BlockSeconds:
        """Seconds of every block for one microbatch on one kind of device.

        Raises:
            InputError: The profile has no times for the device.
        """
        key = (split, samples, device.name, busy, around)
        if key not in self._blocks:
            computing = self._computed(split, samples, device, busy, around)
            self._blocks[key] = self._shared_out(computing, split, device, busy, around)
        return self._blocks[key]

    def _computed(
        self, split: Split, samples: int, device: Device, busy: int, around: Surroundings
    ) -> Computing:
        """What does not depend on who shares out what; often known for several sizes at once."""
        alike = self._unshared(around, device)
        numbers, many = self._many.get((split, device.name, busy, alike), ({}, None))
        if many is not None and samples in numbers:
            return many.row(numbers[samples])
        key = (split, samples, device.name, busy, alike)
        if key not in self._computing:
            self._computing[key] = self._compute(split, samples, device, busy, alike)
        return self._computing[key]

    def _unshared(self, around: Surroundings, device: Device) -> Surroundings:
        """What seconds depend on where nothing is shared out.

        Whose module runs makes a difference only where that was measured.
        """
        eager = around.eager and self.compute.measured_on(device)
        return replace(around.unshared, eager=eager)

    def prepare(self, splits: Sequence[Split], sizes: Sequence[int], device: Device) -> None:
        """Price the ops of several splits at once, for :meth:`many_seconds` of these sizes."""
        if self.compute.measured_on(device):
            return
        column = np.array(sizes, dtype=float)[:, None]
        works = [self.work(split) for split in splits]
        numbers = {float(size): index for index, size in enumerate(sizes)}
        for split, phases in zip(
            splits, self.compute.many_phases(works, column, device), strict=True
        ):
            self._phases[split, device.name] = (numbers, phases)

    def _prepared(self, split: Split, samples: int | Vector, device: Device) -> Phases | None:
        """What :meth:`prepare` left for a column of sizes."""
        numbers, phases = self._phases.get((split, device.name), ({}, None))
        rows = [numbers.get(size, -1) for size in np.ravel(samples).tolist()]
        return None if phases is None or min(rows) < 0 else phases.take(rows)

    def many_seconds(
        self,
        split: Split,
        sizes: Sequence[int],
        device: Device,
        busy: int,
        around: Surroundings,
    ) -> Computing | None:
        """Several microbatch sizes at once ``[size, block]``, where ranks share out nothing.

        ``None`` where the device was measured: its curves are read one size at a time.
        """
        if self.compute.measured_on(device):
            return None
        alike = self._unshared(around, device)
        key = (split, device.name, busy, alike)
        if key not in self._many or list(self._many[key][0]) != list(sizes):
            column = np.array(sizes, dtype=float)[:, None]
            many = self._compute(split, column, device, busy, alike)
            self._many[key] = ({size: index for index, size in enumerate(sizes)}, many)
        return self._many[key][1]

    def _compute(
        self,
        split: Split,
        samples: int | Vector,
        device: Device,
        busy: int,
        around: Surroundings,
    ) -> Computing:
        return computing_seconds(
            self.work(split),
            samples,
            device,
            busy,
            self.compute,
            self.inside,
            around,
            self._prepared(split, samples, device) if np.ndim(samples) else None,
        )

    def _shared_out(
        self, computing: Computing, split: Split, device: Device, busy: int, around: Surroundings
    ) -> BlockSeconds:
        return block_seconds(
            computing,
            self.work(split),
            device,
            busy,
            self.compute,
            self.inside,
            around,
            self.sizes,
        )

    @property
    def inside(self) -> CommunicationModel:
        """Collective times by shape; which devices are busy is in the shapes."""
        return self.communication(self.first_devices(self.cluster.device_count))

    def span_seconds(
        self,
        split: Split,
        samples: int,
        microbatches: int,
        device: Device,
        busy: int,
        levels: Levels,
        around: Surroundings,
    ) -> SpanSeconds:
        """Seconds of any run of blocks on one kind of device.

        Backward includes the mean time of adding gradients to those of earlier microbatches.

        Raises:
            InputError: The profile has no times for the device.
        """
        key = (split, samples, microbatches, device.name, busy, levels, around)
        if key not in self._spans:
            blocks = self.block_seconds(split, samples, device, busy, around)
            backward = blocks.backward + self.accumulate(split, microbatches, device, busy)
            again, again_collective = recompute_seconds(blocks, levels)
            sums = [
                [0.0, *np.cumsum(vector).tolist()]
                for vector in (
                    blocks.forward,
                    backward,
                    blocks.weight,
                    again,
                    blocks.forward_collective,
                    blocks.backward_collective,
                    again_collective,
                )
            ]
            self._spans[key] = SpanSeconds(
                forward=sums[0],
                backward=sums[1],
                weight=sums[2],
                recompute=sums[3],
                forward_collective=sums[4],
                backward_collective=sums[5],
                recompute_collective=sums[6],
            )
        return self._spans[key]

    def accumulate(self, split: Split, microbatches: int, device: Device, busy: int) -> Vector:
        """Mean seconds per microbatch of adding gradients to those of earlier ones, per block."""
        work = self.work(split)
        per_element = self.compute.accumulate_seconds_per_element(device, busy)
        share = (microbatches - 1) / microbatches
        return np.asarray((work.parameters + work.experts) * per_element * share)
