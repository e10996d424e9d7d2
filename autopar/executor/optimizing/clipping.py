"""Gradient clipping by the norm over the whole model, however its weights are spread."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist

from autopar.executor.optimizing.gradients import local

if TYPE_CHECKING:
    from autopar.executor.lowering import Lowering
    from autopar.executor.mesh_groups import Group

_EPSILON = 1e-6
_NORM_BYTES = 8


def clip(lowering: Lowering, max_norm: float) -> float:
    """Scale all gradients so that the norm over the whole model is at most ``max_norm``.

    Each rank adds the squares of what it holds of the parameters it owns (a tied parameter has
    one owner), divided by the number of ranks that hold the same elements; their sum over the
    world is the square of the norm. Without cut or sharded weights the ranks of one pipeline are
    enough. Replicas that step on their own sum over their own ranks.
    scale = min(1, max_norm / (norm + 1e-6)), as in ``torch.nn.utils.clip_grad_norm_``.

    Args:
        lowering: What is trained; collective over its ranks.
        max_norm: Limit.

    Returns:
        Norm before clipping.
    """
    context = lowering.context
    groups, plan = context.groups, context.plan
    spread = plan.spreads_weights
    alone = lowering.synchroniser.clip_group
    group = alone or (groups.world if spread else groups.pipeline)
    square = torch.zeros(1, dtype=torch.float64)
    for copies, gradients in _by_copies(lowering, group if spread else None).items():
        norm = torch.nn.utils.get_total_norm(gradients)
        square += norm.double().square().cpu() / copies
    square = square.to(context.device)
    if group.size > 1:
        dist.all_reduce(square, group=group.handle)
        context.traffic.all_reduce(_NORM_BYTES, group.size)
    norm_value = math.sqrt(float(square))
    scale = min(1.0, max_norm / (norm_value + _EPSILON))
    if scale < 1.0:
        live = [local(p.grad) for p in lowering.parameters.values() if p.grad is not None]
        if live:
            torch._foreach_mul_(live, scale)
    return norm_value


def _by_copies(lowering: Lowering, group: Group | None) -> dict[int, list[torch.Tensor]]:
    """Owned gradients by the number of ranks in a group that hold the same elements.

    Without a group each is on one rank of its pipeline.
    """
    peers = group.size // lowering.context.plan.mesh.pp if group is not None else 1
    found: dict[int, list[torch.Tensor]] = {}
    for name, parameter in lowering.parameters.items():
        if name in lowering.owned and parameter.grad is not None:
            copies = peers // lowering.parts(name) if group is not None else 1
            found.setdefault(copies, []).append(local(parameter.grad))
    return found
