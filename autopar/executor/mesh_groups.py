"""Process groups of a plan's mesh, made in the same order on every rank."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist

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
    def position(self) -> int:
        """This rank's place in the group."""
        return self.ranks.index(dist.get_rank())


class MeshGroups:
    """Groups along the axes of a mesh, and others on demand.

    Attributes:
        data: Ranks that hold the same stages in different replicas.
        pipeline: Ranks that hold one replica.
        control: All ranks, over gloo: barriers, figures, objects.

    Args:
        plan: The plan; the default process group spans its world.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.rank = dist.get_rank()
        mesh = plan.mesh
        self.coordinates = mesh.coordinates(self.rank)
        self.world = Group(tuple(range(plan.world_size)), dist.group.WORLD)
        self.data = self.make([mesh.group("dp_replicate", r) for r in range(plan.world_size)])
        self.pipeline = self.make([mesh.group("pp", r) for r in range(plan.world_size)])
        self.control = (
            dist.group.WORLD if dist.get_backend() == "gloo" else dist.new_group(backend="gloo")
        )

    @property
    def replica(self) -> int:
        """Replica this rank belongs to."""
        return self.coordinates["dp_replicate"]

    @property
    def pp(self) -> int:
        """Pipeline coordinate of this rank."""
        return self.coordinates["pp"]

    def across_stages(self, pp_coordinates: Sequence[int]) -> Group:
        """Ranks of one replica at some pipeline coordinates (collective over the world).

        Every rank must call this with the same coordinates; a rank outside gets a group without
        itself and must not use it.
        """
        mesh = self.plan.mesh
        replicas = range(mesh.dp_replicate)
        return self.make(
            [
                tuple(mesh.rank(dp_replicate=replica, pp=pp) for pp in pp_coordinates)
                for replica in replicas
            ]
        )

    def make(self, sets: Sequence[tuple[int, ...]]) -> Group:
        """Create every distinct set in order; returns the one that holds this rank."""
        mine = Group((self.rank,), None)
        seen: set[tuple[int, ...]] = set()
        for ranks in sets:
            if ranks in seen or len(ranks) == 1:
                continue
            seen.add(ranks)
            whole = len(ranks) == self.world_size
            handle = dist.group.WORLD if whole else dist.new_group(list(ranks))
            if self.rank in ranks:
                mine = Group(ranks, handle)
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
