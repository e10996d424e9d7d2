"""How much each microbatch's loss counts, so that a step has the mean over the global batch.

A task's loss is the mean over the items of one microbatch, and data parallelism takes the mean
over replicas. With ``M`` microbatches on each of ``R`` replicas that are all alike, ``1 / M`` is
right. In general microbatch ``k`` of replica ``r`` has ``w[r, k]`` items of ``W`` in all and must
count ``R * w[r, k] / W`` on its replica: the mean over replicas of the sums over microbatches is
then the sum over items divided by ``W``.

Items are samples, of which a plan may give replicas different numbers (``plan.batch_shares``), or
what the task counts (``task.weight``), such as the tokens of a target that are not padding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist

from autopar.core.errors import InputError
from autopar.executor.data import Microbatch
from autopar.executor.measuring.traffic import Traffic
from autopar.executor.mesh_groups import MeshGroups
from autopar.plans import Plan
from autopar.tasks import Task

_TOTAL_BYTES = 8


def loss_weights(
    plan: Plan,
    task: Task,
    groups: MeshGroups,
    microbatches: Sequence[Microbatch],
    traffic: Traffic,
) -> list[float]:
    """What each microbatch of this replica counts.

    Collective over the world if the task counts items, else nothing is sent.

    Args:
        plan: The plan.
        task: The task.
        groups: This rank's groups.
        microbatches: Of this replica, in order.
        traffic: Counts what is sent.

    Raises:
        InputError: The task counts no item in the whole global batch.
    """
    replicas = plan.mesh.replicas
    if task.weight is None:
        share = plan.replica_microbatch(groups.replica) / plan.microbatch_size
        return [share / plan.microbatches] * plan.microbatches
    counts = [counted(task, target) for _, target in microbatches]
    total = torch.tensor([sum(counts)], dtype=torch.float64)
    if groups.world_size > 1:
        dist.all_reduce(total, group=groups.control)
        traffic.all_reduce(_TOTAL_BYTES, groups.world_size)
    whole = float(total) * replicas / groups.world_size  # ranks of a replica count the same items
    return [replicas * count / positive(task, whole) for count in counts]


def counted(task: Task, target: Any) -> float:
    """Items of one microbatch.

    Raises:
        InputError: The task's ``weight`` failed or gave no count.
    """
    assert task.weight is not None
    count = task.weight(target)
    try:
        value = float(count)
    except (TypeError, ValueError, RuntimeError):
        value = -1.0
    if not 0.0 <= value < float("inf"):
        raise InputError(
            f"task '{task.name}': weight(target) returned {count!r}",
            hint="return how many items of the target the loss is the mean of, 0 or more",
        )
    return value


def positive(task: Task, total: float) -> float:
    """The number of items in a global batch, if there are any.

    Raises:
        InputError: There is none.
    """
    if total > 0:
        return total
    raise InputError(
        f"task '{task.name}': weight(target) counts no item in a whole global batch",
        hint="check the target and weight()",
    )
