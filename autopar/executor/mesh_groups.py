"""Process groups of a plan's mesh, made in the same order on every rank."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist

from autopar.executor.server.roles import server_sync
from autopar.plans import Plan


class Group:
    """A set of ranks that calls collectives together.

    Args:
        ranks: Global ranks, this one included.
        handle: Process group; ``None`` when the group is this rank alone.
    """

    def __init__(self, ranks: tuple[int, ...], handle: dist.ProcessGroup | None) -> None:
        self.ranks = ranks
        self.handle = handle

    @property
    def size(self) -> int:
        """Number of ranks."""
        return len(self.ranks)

    @property
    def group(self) -> dist.ProcessGroup:
        """The process group of two or more ranks."""
        assert self.handle is not None, f"rank {self.ranks} is alone"
        return self.handle

    @property
    def position(self) -> int:
        """This rank's place in the group."""
        return self.ranks.index(dist.get_rank())


class MeshGroups:
    """Groups along the axes of a mesh, and others on demand.

    Attributes:
        data: Ranks that hold the same weights before anything is sharded, and see different
            samples or different parts of them: dp_replicate x dp_shard x cp. This rank alone
            when parameter servers bring their gradients together.
        replicate: Ranks along dp_replicate.
        shard: Ranks along dp_shard.
        weight_shard: Ranks that share out weights, gradients or optimizer state when dp_shard is
            2 or more: dp_shard x cp.
        cp: Ranks that hold parts of the same sequences.
        tp: Ranks that hold parts of the same ops.
        ep: Ranks that hold different experts: ``mesh.ep`` neighbours in ``data``.
        expert_data: Ranks of ``data`` that hold the same experts.
        pipeline: Ranks along pp.
        peers: All ranks that run the same stages.
        control: All ranks, over gloo: barriers, figures, objects.

    Args:
        plan: The plan; the default process group spans its world.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.rank = dist.get_rank()
        self.coordinates = plan.mesh.coordinates(self.rank)
        self.world = Group(tuple(range(plan.world_size)), dist.group.WORLD)
        self._made: dict[tuple[int, ...], Any] = {}
        self.data = self._along("dp_replicate", "dp_shard", "cp")
        if server_sync(plan) is not None:
            self.data = Group((self.rank,), None)
        self.replicate = self._along("dp_replicate")
        self.shard = self._along("dp_shard")
        self.weight_shard = self._along("dp_shard", "cp")
        self.cp = self._along("cp")
        self.tp = self._along("tp")
        self.ep, self.expert_data = self._expert_groups()
        self.pipeline = self._along("pp")
        self.peers = self._along("dp_replicate", "dp_shard", "cp", "tp")
        self.control = (
            dist.group.WORLD if dist.get_backend() == "gloo" else dist.new_group(backend="gloo")
        )

    def _along(self, *axes: str) -> Group:
        mesh = self.plan.mesh
        return self.make([mesh.group(*axes, rank=r) for r in range(self.world_size)])

    def _expert_groups(self) -> tuple[Group, Group]:
        mesh, ep = self.plan.mesh, self.plan.mesh.ep
        rows = {
            mesh.group("dp_replicate", "dp_shard", "cp", rank=r) for r in range(self.world_size)
        }
        near = [row[i : i + ep] for row in sorted(rows) for i in range(0, len(row), ep)]
        same = [row[i::ep] for row in sorted(rows) for i in range(ep)]
        return self.make(near), self.make(same)

    @property
    def replica(self) -> int:
        """Replica this rank belongs to: ranks with other samples are other replicas."""
        place = self.coordinates
        return place["dp_replicate"] * self.plan.mesh.dp_shard + place["dp_shard"]

    @property
    def pp(self) -> int:
        """Pipeline coordinate of this rank."""
        return self.coordinates["pp"]

    def axis(self, name: str) -> Group:
        """The group of a mesh axis by name."""
        group = {
            "dp_replicate": self.replicate,
            "dp_shard": self.shard,
            "cp": self.cp,
            "tp": self.tp,
            "ep": self.ep,
            "pp": self.pipeline,
        }[name]
        return group

    def across_stages(self, pp_coordinates: Sequence[int]) -> Group:
        """Ranks at some pipeline coordinates and equal places otherwise (collective).

        Every rank must call this with the same coordinates; a rank outside gets a group without
        itself and must not use it.
        """
        mesh = self.plan.mesh
        return self.make(
            [
                tuple(mesh.rank(**{**mesh.coordinates(r), "pp": pp}) for pp in pp_coordinates)
                for r in mesh.group("dp_replicate", "dp_shard", "cp", "tp", rank=0)
            ]
        )

    def make(self, sets: Sequence[tuple[int, ...]]) -> Group:
        """Create every distinct set in order; returns the one that holds this rank.

        Sets that exist already are used again.
        """
        mine = Group((self.rank,), None)
        for ranks in dict.fromkeys(sets):
            if len(ranks) == 1:
                continue
            if ranks not in self._made:
                whole = len(ranks) == self.world_size
                self._made[ranks] = self.world.handle if whole else dist.new_group(list(ranks))
            if self.rank in ranks:
                mine = Group(ranks, self._made[ranks])
        return mine

    @property
    def world_size(self) -> int:
        """Ranks of the whole run."""
        return self.plan.world_size

    def mean_loss(self, loss: torch.Tensor | None) -> float:
        """Mean over replicas of the loss that the last stage of each knows; all ranks get it."""
        known = torch.zeros(2, dtype=torch.float64)
        if loss is not None:
            known[0], known[1] = float(loss), 1.0
        dist.all_reduce(known, group=self.control)
        return float(known[0] / known[1])
