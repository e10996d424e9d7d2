"""What happens to gradients between backward and the optimizer step."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor

from autopar.executor.measuring.traffic import Traffic
from autopar.executor.mesh_groups import Group

_BUCKETS_IN_FLIGHT = 2

Flight = tuple[Any, torch.Tensor, list[torch.nn.Parameter]]


def local(tensor: torch.Tensor) -> torch.Tensor:
    """What this rank holds of a tensor that may be sharded."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


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
        own = local(parameter).numel() * parameter.element_size()
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
    so they are the same everywhere. Afterwards gradients are views of the flat buckets. Of
    sharded parameters the shards are reduced; the ranks of the group must hold equal shards.

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
        flats = [local(_gradient(p)).reshape(-1) for p in bucket]
        flat = torch.cat(flats) if len(flats) > 1 else flats[0]
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
    pieces = torch.split(flat, [local(p).numel() for p in bucket])
    for parameter, piece in zip(bucket, pieces, strict=True):
        if isinstance(parameter, DTensor):
            gradient = local(_gradient(parameter))
            gradient.copy_(piece.view_as(gradient))
        else:
            parameter.grad = piece.view_as(parameter)


def _gradient(parameter: torch.nn.Parameter) -> torch.Tensor:
    assert parameter.grad is not None
    return parameter.grad


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
