"""Which groups of devices each mesh axis forms, by pipeline coordinate."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from autopar.cost.communication.collectives import CommunicationModel
from autopar.cost.communication.groups import Group
from autopar.plans import Mesh

Shapes = tuple[Group, ...]
"""The different shapes of the groups of one axis; the slowest one sets the time."""


@dataclass(frozen=True, kw_only=True)
class RankGroups:
    """Groups of a mesh on a placement.

    Ranks run over ``pp``, ``dp_replicate``, ``dp_shard``, ``cp``, ``tp``, the last one fastest, so
    the ranks of a stage are consecutive and each axis is a stride among them.

    Attributes:
        mesh: Degrees.
        placement: Device of each rank.
        communication: Shapes of groups among these devices.
    """

    mesh: Mesh
    placement: tuple[int, ...]
    communication: CommunicationModel

    @cached_property
    def stage_ranks(self) -> int:
        """Ranks of a pipeline coordinate."""
        return self.mesh.world_size // self.mesh.pp

    @cached_property
    def regular(self) -> bool:
        """True when equal strides mean equal shapes: devices 0, 1, 2 ... of equal nodes."""
        return self.communication.shapes.regular

    def _axis(self, coordinate: int, stride: int, count: int) -> Shapes:
        """Shapes of the groups of ``count`` ranks, ``stride`` apart, in a stage."""
        shapes, first = self.communication.shapes, coordinate * self.stage_ranks
        if self.regular:
            first %= shapes.per_node_devices
        key = (first, self.stage_ranks, stride, count)
        if key not in shapes.axes:
            shapes.axes[key] = self._shapes(first, stride, count)
        return shapes.axes[key]

    def _shapes(self, first: int, stride: int, count: int) -> Shapes:
        """The different shapes; one stands for all where blocks of ranks fill whole nodes."""
        shapes, block = self.communication.shapes, stride * count
        if self.regular:
            node = shapes.per_node_devices if first == 0 else None
        else:
            node = shapes.node_size(first, first + self.stage_ranks)
        starts = (
            [0]
            if node is not None and (block % node == 0 or node % block == 0)
            else [b + i for b in range(0, self.stage_ranks, block) for i in range(stride)]
        )
        found = (self._shape(first + start, stride, count) for start in starts)
        return tuple(dict.fromkeys(found))

    def _shape(self, first: int, stride: int, count: int) -> Group:
        shapes = self.communication.shapes
        if self.regular:
            return shapes.strided(first, stride, count)
        return shapes.of(tuple(self.placement[first + stride * i] for i in range(count)))

    def tp(self, coordinate: int) -> Shapes:
        """Tensor parallel groups of a pipeline coordinate."""
        return self._axis(coordinate, 1, self.mesh.tp)

    def cp(self, coordinate: int) -> Shapes:
        """Context parallel groups."""
        return self._axis(coordinate, self.mesh.tp, self.mesh.cp)

    def ep(self, coordinate: int) -> Shapes:
        """Expert parallel groups, over the fastest data ranks."""
        return self._axis(coordinate, self.mesh.tp, self.mesh.ep)

    def data(self, coordinate: int) -> Shapes:
        """Ranks that hold the same parameters: replicas, shards and context ranks."""
        return self._axis(coordinate, self.mesh.tp, self.mesh.replicas * self.mesh.cp)

    def expert_data(self, coordinate: int) -> Shapes:
        """Ranks that hold the same experts."""
        stride = self.mesh.tp * self.mesh.ep
        return self._axis(coordinate, stride, self.mesh.replicas * self.mesh.cp // self.mesh.ep)

    def shard(self, coordinate: int) -> Shapes:
        """Ranks that share out states, gradients or parameters: shards and context ranks."""
        return self._axis(coordinate, self.mesh.tp, self.mesh.dp_shard * self.mesh.cp)

    def replicate(self, coordinate: int) -> Shapes:
        """Replicas of a shard (HSDP)."""
        stride = self.mesh.tp * self.mesh.cp * self.mesh.dp_shard
        return self._axis(coordinate, stride, self.mesh.dp_replicate)
