"""The device mesh over which FSDP2 shards, on process groups that exist already."""

from __future__ import annotations

import torch
from torch.distributed.device_mesh import DeviceMesh

from autopar.executor.mesh_groups import MeshGroups


def sharding_mesh(groups: MeshGroups, device: torch.device) -> DeviceMesh:
    """``(dp_shard,)``, or ``(dp_replicate, dp_shard)`` when there are replicas of the shards.

    Ranks that hold parts of the same sequences share out weights too, as the cost model assumes,
    so ``dp_shard`` here counts dp_shard x cp ranks. No group is made that is not there: every
    rank must make groups in the same order.
    """
    shard, replicate = groups.weight_shard, groups.replicate
    if replicate.size == 1:
        return DeviceMesh.from_group(shard.group, device.type, mesh_dim_names=("dp_shard",))
    mesh = groups.plan.mesh
    rows = [mesh.group("dp_shard", "cp", rank=rank) for rank in replicate.ranks]
    return DeviceMesh.from_group(
        [replicate.group, shard.group],
        device.type,
        mesh=torch.tensor(rows),
        mesh_dim_names=("dp_replicate", "dp_shard"),
    )
