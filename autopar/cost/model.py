"""CostModel: what all plans of one profile on one cluster share, computed once."""

from __future__ import annotations

from dataclasses import dataclass

from autopar.cluster import Cluster, Device
from autopar.cost.collectives import CommunicationModel
from autopar.cost.compute import ComputeModel
from autopar.cost.simulate import Program, compile_program
from autopar.cost.tables import Tables, prefix_differences
from autopar.graph import GraphProfile
from autopar.schedules import SCHEDULES, AbstractSchedule


@dataclass(frozen=True, kw_only=True)
class SpanSeconds:
    """Seconds of any run of blocks ``[i, j)`` for one microbatch, as nested lists ``[i][j]``."""

    forward: list[list[float]]
    backward: list[list[float]]
    recompute: list[list[float]]
    total: float


class CostModel:
    """Caches behind :func:`autopar.cost.price`; make one and pass it when pricing many plans.

    Args:
        profile: What is trained.
        cluster: Where.
        precision: Parameter and compute dtype.
    """

    def __init__(
        self, profile: GraphProfile, cluster: Cluster, precision: str = "float32"
    ) -> None:
        self.profile = profile
        self.cluster = cluster
        self.precision = precision
        self.compute = ComputeModel(profile, cluster, precision)
        self.tables = Tables(profile, self.compute.byte_scale)
        self._schedules: dict[str, AbstractSchedule] = {}
        self._programs: dict[tuple[str, int, int, int], Program] = {}
        self._spans: dict[tuple[int, int, str, int, tuple[bool, ...]], SpanSeconds] = {}
        self._communication: dict[tuple[int, ...], CommunicationModel] = {}

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

    def communication(self, placement: tuple[int, ...]) -> CommunicationModel:
        """Communication between the devices that take part."""
        if placement not in self._communication:
            self._communication[placement] = CommunicationModel(self.cluster, placement)
        return self._communication[placement]

    def span_seconds(
        self,
        samples: int,
        microbatches: int,
        device: Device,
        ranks_on_host: int,
        recompute: tuple[bool, ...],
    ) -> SpanSeconds:
        """Seconds of any run of blocks on one kind of device.

        Backward includes the mean time of adding gradients to those of earlier microbatches.

        Raises:
            InputError: The profile has no times for the device.
        """
        key = (samples, microbatches, device.name, ranks_on_host, recompute)
        if key not in self._spans:
            forward, backward = self.compute.block_seconds(samples, device, ranks_on_host)
            per_byte = self.compute.accumulate_seconds_per_byte(device, ranks_on_host)
            per_byte *= self.compute.byte_scale * (microbatches - 1) / microbatches
            backward = tuple(
                seconds + block.parameter_bytes * per_byte
                for seconds, block in zip(backward, self.profile.blocks, strict=True)
            )
            again = [
                f + self.compute.checkpoint_seconds(block, device, ranks_on_host) if flag else 0.0
                for f, flag, block in zip(forward, recompute, self.profile.blocks, strict=True)
            ]
            tables = [prefix_differences(list(v)).tolist() for v in (forward, backward, again)]
            self._spans[key] = SpanSeconds(
                forward=tables[0],
                backward=tables[1],
                recompute=tables[2],
                total=sum(forward) + sum(backward) + sum(again),
            )
        return self._spans[key]
