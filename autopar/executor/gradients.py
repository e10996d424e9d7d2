"""What happens to gradients between backward and the optimizer step."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.distributed as dist

from autopar.executor.mesh_groups import Group
from autopar.executor.traffic import Traffic

_EPSILON = 1e-6
_BUCKETS_IN_FLIGHT = 2

Flight = tuple[Any, torch.Tensor, list[torch.nn.Parameter]]


def size_bytes(tensors: Iterable[torch.Tensor]) -> int:
    """Bytes of the elements of some tensors."""
    return sum(t.numel() * t.element_size() for t in tensors)


def make_buckets(
    parameters: Sequence[torch.nn.Parameter], bucket_bytes: int
) -> list[list[torch.nn.Parameter]]:
    """Group parameters of one dtype, last first as backward makes them, up to a size each."""
    buckets: list[list[torch.nn.Parameter]] = []
    filled: dict[torch.dtype, tuple[list[torch.nn.Parameter], int]] = {}
    for parameter in reversed(parameters):
        own = parameter.numel() * parameter.element_size()
        bucket, used = filled.get(parameter.dtype, ([], 0))
        if not bucket or used + own > bucket_bytes:
            bucket, used = [], 0
            buckets.append(bucket)
        bucket.append(parameter)
        filled[parameter.dtype] = (bucket, used + own)
    return buckets


def reduce_gradients(
    parameters: Sequence[torch.nn.Parameter],
    group: Group,
    *,
    divide: bool,
    bucket_bytes: int,
    traffic: Traffic,
) -> None:
    """Sum (or average) gradients over a group: one flat all-reduce per bucket, two under way.

    Parameters without a gradient are left out; the graph is the same on every rank of the group,
    so they are the same everywhere. Afterwards gradients are views of the flat buckets.

    Args:
        parameters: Parameters in the same order on every rank.
        group: Ranks that hold them.
        divide: Average instead of sum.
        bucket_bytes: Largest bucket, one parameter at least.
        traffic: Counts what is sent.
    """
    if group.size == 1:
        return
    live = [p for p in parameters if p.grad is not None]
    flights: deque[Flight] = deque()
    for bucket in make_buckets(live, bucket_bytes):
        flat = torch.cat([_gradient(p).reshape(-1) for p in bucket])
        if divide:
            flat.div_(group.size)
        work = dist.all_reduce(flat, group=group.handle, async_op=True)
        traffic.all_reduce(size_bytes([flat]), group.size)
        flights.append((work, flat, bucket))
        if len(flights) == _BUCKETS_IN_FLIGHT:
            _land(*flights.popleft())
    while flights:
        _land(*flights.popleft())


def _land(work: Any, flat: torch.Tensor, bucket: list[torch.nn.Parameter]) -> None:
    work.wait()
    pieces = torch.split(flat, [p.numel() for p in bucket])
    for parameter, piece in zip(bucket, pieces, strict=True):
        parameter.grad = piece.view_as(parameter)


def _gradient(parameter: torch.nn.Parameter) -> torch.Tensor:
    assert parameter.grad is not None
    return parameter.grad


def clip(
    parameters: Sequence[torch.nn.Parameter],
    owned: Sequence[torch.nn.Parameter],
    max_norm: float,
    pipeline: Group,
    traffic: Traffic,
    device: torch.device,
) -> float:
    """Scale all gradients so that the norm over the whole model is at most ``max_norm``.

    The squared norms of what each pipeline rank owns are summed over the pipeline, so a tied
    parameter counts once; scale = min(1, max_norm / (norm + 1e-6)) as in
    ``torch.nn.utils.clip_grad_norm_``.

    Args:
        parameters: All parameters of this rank.
        owned: Those of which this rank is the canonical owner.
        max_norm: Limit.
        pipeline: The ranks that share one copy of the model.
        traffic: Counts what is sent.
        device: Where collectives take their tensors from.

    Returns:
        Norm before clipping.
    """
    gradients = [p.grad for p in owned if p.grad is not None]
    norms = torch.nn.utils.get_total_norm(gradients) if gradients else torch.zeros(())
    square = norms.double().square().reshape(1).to(device)
    if pipeline.size > 1:
        dist.all_reduce(square, group=pipeline.handle)
        traffic.all_reduce(8, pipeline.size)
    norm = math.sqrt(float(square))
    scale = min(1.0, max_norm / (norm + _EPSILON))
    if scale < 1.0:
        live = [p.grad for p in parameters if p.grad is not None]
        if live:
            torch._foreach_mul_(live, scale)
    return norm


def broadcast_buffers(buffers: Sequence[torch.Tensor], group: Group, traffic: Traffic) -> None:
    """Give every replica the buffers of replica 0, as DDP does; one message per dtype."""
    if group.size == 1:
        return
    for dtype in sorted({b.dtype for b in buffers}, key=str):
        same = [b for b in buffers if b.dtype == dtype]
        flat = torch.cat([b.reshape(-1) for b in same])
        dist.broadcast(flat, src=group.ranks[0], group=group.handle)
        traffic.broadcast(size_bytes([flat]), group.size, group.position)
        if group.position:
            for buffer, piece in zip(
                same, torch.split(flat, [b.numel() for b in same]), strict=True
            ):
                buffer.data.copy_(piece.view_as(buffer))
