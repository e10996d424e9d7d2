"""What must hold of periodic averages, computed another way."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist

from autopar.executor.mesh_groups import Group

if TYPE_CHECKING:
    from autopar.executor.synchronising.periodic import Periodic


def mean_over(group: Group, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Means over a group in float64 (collective)."""
    result = {}
    for name, tensor in tensors.items():
        mean = tensor.detach().double()
        if mean is tensor:
            mean = mean.clone()
        if group.size > 1:
            dist.all_reduce(mean, group=group.handle)
        result[name] = mean.div_(group.size)
    return result


@torch.no_grad()
def average_error(periodic: Periodic) -> float:
    """Average, and compare with the plain float64 mean of what went in (collective).

    What the compression kept back is taken off that mean; what it may round is allowed for. Of
    tied weights the owner's copy counts, which the others get.

    Returns:
        Relative norm of the difference of new weights beyond what is allowed.
    """
    lowering = periodic.lowering
    before = {n: p.detach().clone() for n, p in periodic.trained().items()}
    anchors = {n: a.clone() for n, a in periodic.anchors.items()}
    changes = {n: w - anchors[n] if anchors else w for n, w in before.items()}
    wanted = mean_over(periodic.group, changes)
    periodic.average()
    errors = periodic.reducer.feedback.errors
    if errors:
        kept = mean_over(periodic.group, {n: errors[n].view_as(w) for n, w in before.items()})
        wanted = {n: value - kept[n] for n, value in wanted.items()}
    difference = norm = spread = 0.0
    for name, value in wanted.items():
        spread += float(changes[name].double().square().sum())
        if name not in lowering.owned:
            continue
        expected = anchors[name].double() + periodic.gain * value if anchors else value
        found = periodic.trained()[name].detach().double()
        difference += float((found - expected).square().sum())
        norm += float(expected.square().sum())
    squares = torch.tensor([spread], dtype=torch.float64, device=lowering.context.device)
    dist.all_reduce(squares, group=periodic.group.handle)
    bound = periodic.sync.compression.error_bound(periodic.group.size) or 0.0
    allowed = bound * periodic.gain * math.sqrt(float(squares) / periodic.group.size)
    beyond = max(0.0, math.sqrt(difference) - allowed)
    return beyond / math.sqrt(norm) if norm else (math.inf if beyond else 0.0)
