"""Which ranks are on one node."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch.distributed as dist

from autopar.core.errors import InputError
from autopar.executor.mesh_groups import Group
from autopar.sync import AbstractSyncMode, SyncGroup

if TYPE_CHECKING:
    from autopar.executor.lowering import Context


def node_group(context: Context, mode: AbstractSyncMode) -> Group:
    """The part of this rank's data group that is on its node (collective).

    Raises:
        InputError: The mode cannot work with the nodes there are.
    """
    plan, size = context.plan, context.node_size
    sizes: list[Any] = [None] * plan.world_size
    dist.all_gather_object(sizes, size, group=context.groups.control)
    if len(set(sizes)) > 1:
        raise InputError(
            f"plan {plan.name}: {mode.name} averages in nodes of the same number of ranks, these "
            f"have {sorted(set(sizes))}",
            hint="start the same number of ranks on every host",
        )
    seats = {device: seat for seat, device in enumerate(sorted(plan.placement))}
    node_of = [seats[device] // size for device in plan.placement]
    axes = ("dp_replicate", "dp_shard", "cp")
    rows = sorted({plan.mesh.group(*axes, rank=r) for r in range(plan.world_size)})
    parts = []
    for row in rows:
        nodes: dict[int, tuple[int, ...]] = {}
        for rank in row:
            nodes[node_of[rank]] = (*nodes.get(node_of[rank], ()), rank)
        even = len({len(part) for part in nodes.values()}) == 1
        problem = mode.check(SyncGroup(ranks=len(row), nodes=len(nodes) if even else 1))
        if problem is not None:
            raise InputError(
                f"plan {plan.name}: {problem}; ranks {list(row)} are on "
                f"{[len(part) for part in nodes.values()]} of nodes with {size} ranks",
                hint="run on more hosts, or say how many ranks count as a node (node_size)",
            )
        parts += list(nodes.values())
    return context.groups.make(parts)
