"""CostModel: what all plans of one profile on one cluster share, computed once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from autopar.cluster import Cluster, Device
from autopar.cost.blocks import BlockSeconds, Surroundings, block_seconds
from autopar.cost.collectives import CommunicationModel
from autopar.cost.compute import ComputeModel
from autopar.cost.simulate import Program, compile_program
from autopar.cost.states import ParameterBytes
from autopar.cost.tables import Tables, prefix_differences
from autopar.cost.work import FULL, SELECTIVE, Levels, StageWork, Vector
from autopar.graph import GraphProfile
from autopar.schedules import SCHEDULES, AbstractSchedule
from autopar.strategies import Split, Strategies

Peaks = tuple[tuple[tuple[int, ...], ...], ...]


@dataclass(frozen=True, kw_only=True)
class SpanSeconds:
    """Seconds of any run of blocks ``[i, j)`` for one microbatch, as nested lists ``[i][j]``.

    Collectives inside the blocks are part of each phase; the ``_collective`` tables say how much.
    """

    forward: list[list[float]]
    backward: list[list[float]]
    weight: list[list[float]]
    recompute: list[list[float]]
    forward_collective: list[list[float]]
    backward_collective: list[list[float]]
    recompute_collective: list[list[float]]
    total: float


class CostModel:
    """Caches behind :func:`autopar.cost.price`; make one and pass it when pricing many plans.

    Args:
        profile: What is trained.
        cluster: Where.
        precision: Compute dtype.

    Raises:
        InputError: Unknown precision.
    """

    def __init__(
        self, profile: GraphProfile, cluster: Cluster, precision: str = "float32"
    ) -> None:
        self.profile = profile
        self.cluster = cluster
        self.precision = precision
        ratio = profile.optimizer.state_bytes_per_parameter_byte
        self.sizes = ParameterBytes.of(precision, ratio)
        self.strategies = Strategies(profile)
        self.compute = ComputeModel(profile, cluster, precision)
        self._works: dict[Split, StageWork] = {}
        self._tables: dict[Split, Tables] = {}
        self._schedules: dict[str, AbstractSchedule] = {}
        self._programs: dict[tuple[str, int, int, int], Program] = {}
        self._peaks: dict[tuple[str, int, int, int], Peaks] = {}
        self._blocks: dict[object, BlockSeconds] = {}
        self._spans: dict[object, SpanSeconds] = {}
        self._communication: dict[tuple[int, ...], CommunicationModel] = {}
        self._kinds: dict[object, tuple[tuple[Device, int], ...]] = {}

    def work(self, split: Split) -> StageWork:
        """The blocks as divided."""
        if split not in self._works:
            self._works[split] = StageWork(strategies=self.strategies, split=split)
        return self._works[split]

    def tables(self, split: Split) -> Tables:
        """Byte tables of the blocks as divided."""
        if split not in self._tables:
            self._tables[split] = Tables(self.work(split), self.compute.activation_scale)
        return self._tables[split]

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
        if key not in self._programs:
            self._programs[key] = compile_program(self.schedule(schedule), *key[1:])
        return self._programs[key]

    def in_flight(self, schedule: str, ranks: int, stages: int, microbatches: int) -> Peaks:
        """Per pipeline coordinate, microbatches in flight per local stage at its peaks."""
        key = (schedule, ranks, stages, microbatches)
        if key not in self._peaks:
            self._peaks[key] = self.schedule(schedule).in_flight(ranks, stages, microbatches)
        return self._peaks[key]

    def communication(self, placement: tuple[int, ...]) -> CommunicationModel:
        """Communication between the devices that take part."""
        if placement not in self._communication:
            self._communication[placement] = CommunicationModel(self.cluster, placement)
        return self._communication[placement]

    def kinds(
        self, placement: tuple[int, ...], devices: tuple[int, ...]
    ) -> tuple[tuple[Device, int], ...]:
        """Different ``(device, busy devices on its host)`` among some devices of a placement."""
        communication = self.communication(placement)
        if communication.shapes.regular:
            devices = devices[:1]
        key = (placement[:1], len(placement), devices)
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
            self._blocks[key] = block_seconds(
                self.work(split),
                samples,
                device,
                busy,
                self.compute,
                self.inside,
                around,
                self.sizes,
            )
        return self._blocks[key]

    @property
    def inside(self) -> CommunicationModel:
        """Collective times by shape; which devices are busy is in the shapes."""
        return self.communication(tuple(range(self.cluster.device_count)))

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
            tables = [
                prefix_differences(vector).tolist()
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
                forward=tables[0],
                backward=tables[1],
                weight=tables[2],
                recompute=tables[3],
                forward_collective=tables[4],
                backward_collective=tables[5],
                recompute_collective=tables[6],
                total=float(blocks.forward.sum() + backward.sum() + again.sum()),
            )
        return self._spans[key]

    def accumulate(
        self, split: Split, microbatches: int, device: Device, busy: int
    ) -> Vector:
        """Mean seconds per microbatch of adding gradients to those of earlier ones, per block."""
        work = self.work(split)
        per_element = self.compute.accumulate_seconds_per_element(device, busy)
        share = (microbatches - 1) / microbatches
        return np.asarray((work.parameters + work.experts) * per_element * share)


def recompute_seconds(blocks: BlockSeconds, levels: Levels) -> tuple[Vector, Vector]:
    """Extra seconds of each block at its recompute level, and the exposed communication in them."""
    rows = np.asarray(levels)
    seconds = np.where(rows == FULL, blocks.full, np.where(rows == SELECTIVE, blocks.selective, 0))
    return seconds, np.where(rows == FULL, blocks.full_collective, 0.0)
