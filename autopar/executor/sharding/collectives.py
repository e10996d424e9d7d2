"""The collectives that FSDP2 calls, counted, and with less traffic where the backend wastes it."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.fsdp._fully_shard._fsdp_collectives import (
    DefaultAllGather,
    DefaultReduceScatter,
)

from autopar.executor.measuring.traffic import Traffic
from autopar.executor.optimizing.gradients import size_bytes


class CountedAllGather(DefaultAllGather):
    """FSDP2's all-gather, counted.

    Args:
        traffic: Counts what is sent.
    """

    def __init__(self, traffic: Traffic) -> None:
        self._traffic = traffic

    def __call__(
        self,
        output_tensor: torch.Tensor,
        input_tensor: torch.Tensor,
        group: dist.ProcessGroup,
        async_op: bool = False,
    ) -> dist.Work | None:
        """Gather the shards of one unit."""
        self._traffic.all_gather(size_bytes([output_tensor]), group.size())
        return super().__call__(output_tensor, input_tensor, group, async_op)


class CountedReduceScatter(DefaultReduceScatter):
    """FSDP2's reduce-scatter, counted.

    Args:
        traffic: Counts what is sent.
    """

    def __init__(self, traffic: Traffic) -> None:
        self._traffic = traffic

    def __call__(
        self,
        output_tensor: torch.Tensor,
        input_tensor: torch.Tensor,
        group: dist.ProcessGroup,
        op: Any,
        async_op: bool = False,
    ) -> Any:
        """Share out the gradients of one unit."""
        self._traffic.reduce_scatter(size_bytes([input_tensor]), group.size())
        return super().__call__(output_tensor, input_tensor, group, op, async_op)


class ExchangeReduceScatter(DefaultReduceScatter):
    """Reduce-scatter as an all-to-all and a local sum, for gloo.

    Gloo's own (torch 2.11-2.13) is an all-reduce of which each rank keeps a part: twice the
    bytes. Sums only, as every backend of FSDP2 can be told to (``force_sum_reduction``).

    Args:
        traffic: Counts what is sent.
    """

    def __init__(self, traffic: Traffic) -> None:
        self._traffic = traffic

    def __call__(
        self,
        output_tensor: torch.Tensor,
        input_tensor: torch.Tensor,
        group: dist.ProcessGroup,
        op: Any,
        async_op: bool = False,
    ) -> Any:
        """Share out the gradients of one unit."""
        assert op == dist.ReduceOp.SUM, f"sums only, not {op}"
        assert not async_op, "FSDP2 waits for gradients"
        ranks = group.size()
        self._traffic.all_to_all(size_bytes([input_tensor]), ranks)
        received = torch.empty_like(input_tensor)
        dist.all_to_all_single(received, input_tensor, group=group)
        torch.sum(received.view(ranks, -1), 0, out=output_tensor)
        return None
