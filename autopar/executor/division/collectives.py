"""Collectives as calls of a traced graph, with the collective that backward needs.

Ranks of a group hold either the same value (*whole*), or parts of one along a dimension, or terms
of one that only their sum makes whole. What backward must do follows from what the ranks compute
afterwards, so there is one call per pair (Shoeybi et al. 2019, arXiv 1909.08053; Korthikanti et
al. 2022, arXiv 2205.05198):

==================  =======================  =====================================
call                forward                  backward
==================  =======================  =====================================
``sum_forward``     all-reduce               as it is: the gradient is whole
``sum_backward``    as it is                 all-reduce: the gradients are terms
``sum_both``        all-reduce               all-reduce
``gather``          all-gather               reduce-scatter: the gradients are terms
``gather_whole``    all-gather               own part: the gradient is whole
``scatter_sum``     reduce-scatter           all-gather
``part``            own part                 all-gather
``exchange``        all-to-all               all-to-all back
==================  =======================  =====================================

On fake tensors they only give shapes, so that graphs with them can be rewritten again.

All ranks of a group must call them in one order; ranks that run the same graph do, also when they
recompute, as backward visits the same nodes in the same order.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch._subclasses.fake_tensor import FakeTensor

from autopar.executor.measuring.traffic import Traffic
from autopar.executor.mesh_groups import Group

Call = Callable[..., torch.Tensor]
"""``call(tensor, ...) -> tensor``, a target of ``call_function`` nodes."""


class Collectives:
    """The calls of one group.

    They are plain functions, made once, so that a graph module's code can name them.

    Args:
        group: Ranks that take part.
        traffic: Counts what is sent.

    Attributes:
        sum_forward: ``(tensor)``.
        sum_backward: ``(tensor)``.
        sum_both: ``(tensor)``.
        gather: ``(tensor, dim)``.
        gather_whole: ``(tensor, dim)``.
        scatter_sum: ``(tensor, dim)``; the group must divide the dimension.
        part: ``(tensor, dim)``; the group must divide the dimension.
        exchange: ``(tensor, split_dim, join_dim)``: from parts along ``join_dim`` to parts along
            ``split_dim``, which the group must divide.
        raw: The collectives themselves, for autograd functions of other modules.
    """

    def __init__(self, group: Group, traffic: Traffic) -> None:
        self.group = group
        self.raw = raw = RawCollectives(group, traffic)

        def keep(tensor: torch.Tensor, *_: int) -> torch.Tensor:
            return tensor.view_as(tensor)

        self.sum_forward = _pair("sum_forward", raw.sum, keep)
        self.sum_backward = _pair("sum_backward", keep, raw.sum)
        self.sum_both = _pair("sum_both", raw.sum, raw.sum)
        self.gather = _pair("gather", raw.gather, raw.scatter_sum)
        self.gather_whole = _pair("gather_whole", raw.gather, raw.part)
        self.scatter_sum = _pair("scatter_sum", raw.scatter_sum, raw.gather)
        self.part = _pair("part", raw.part, raw.gather)
        self.exchange = _pair(
            "exchange", raw.exchange, lambda tensor, split, join: raw.exchange(tensor, join, split)
        )


class RawCollectives:
    """Collectives without gradients, counted.

    Args:
        group: Ranks that take part.
        traffic: Counts what is sent.
    """

    def __init__(self, group: Group, traffic: Traffic) -> None:
        self._group = group
        self._traffic = traffic

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """All-reduce into a tensor of its own: autograd may have kept the given one."""
        return self._reduced(tensor, dist.ReduceOp.SUM)

    def maximum(self, tensor: torch.Tensor) -> torch.Tensor:
        """Elementwise maximum over the ranks."""
        return self._reduced(tensor, dist.ReduceOp.MAX)

    def _reduced(self, tensor: torch.Tensor, op: Any) -> torch.Tensor:
        result = tensor.clone(memory_format=torch.contiguous_format)
        if self._sends(tensor):
            dist.all_reduce(result, op=op, group=self._group.handle)
            self._traffic.all_reduce(_size_bytes(result), self._group.size)
        return result

    def gather(self, tensor: torch.Tensor, dim: int) -> torch.Tensor:
        """The parts of all ranks, one after another along a dimension."""
        count = self._group.size
        if count == 1:
            return tensor.clone()
        tensor = tensor.contiguous()
        parts = tensor.new_empty((count, *tensor.shape))
        if self._sends(tensor):
            dist.all_gather(list(parts.unbind(0)), tensor, group=self._group.handle)
            self._traffic.all_gather(_size_bytes(parts), count)
        return torch.cat(parts.unbind(0), dim)

    def part(self, tensor: torch.Tensor, dim: int) -> torch.Tensor:
        """This rank's equal part of a whole tensor."""
        pieces = self._pieces(tensor, dim)
        return pieces[self._group.position].contiguous()

    def scatter_sum(self, tensor: torch.Tensor, dim: int) -> torch.Tensor:
        """This rank's equal part of the sum.

        gloo's reduce-scatter sends as much as an all-reduce (1.6 times the tensor from each of
        four ranks); exchanging the parts and adding them here sends half of that.
        """
        count = self._group.size
        if count == 1:
            return tensor.clone()
        given = self._stacked(tensor, dim)
        if not self._sends(tensor):
            return given[0]
        self._traffic.reduce_scatter(_size_bytes(given), count)
        if dist.get_backend(self._group.handle) == "gloo":
            got = torch.empty_like(given)
            dist.all_to_all_single(got, given, group=self._group.handle)
            return got.sum(0)
        result = torch.empty_like(given[0])
        dist.reduce_scatter(result, list(given.unbind(0)), group=self._group.handle)
        return result

    def exchange(self, tensor: torch.Tensor, split_dim: int, join_dim: int) -> torch.Tensor:
        """Give rank i the i-th piece along one dimension; join what comes along another."""
        count = self._group.size
        if count == 1:
            return tensor.clone()
        given = self._stacked(tensor, split_dim)
        got = torch.empty_like(given)
        if self._sends(tensor):
            dist.all_to_all_single(got, given, group=self._group.handle)
            self._traffic.all_to_all(_size_bytes(given), count)
        return torch.cat(got.unbind(0), join_dim)

    def _sends(self, tensor: torch.Tensor) -> bool:
        return self._group.size > 1 and not isinstance(tensor, FakeTensor)

    def _stacked(self, tensor: torch.Tensor, dim: int) -> torch.Tensor:
        """One row for each rank; ``stack`` keeps the strides of channels-last tensors."""
        return torch.stack(self._pieces(tensor, dim)).contiguous()

    def _pieces(self, tensor: torch.Tensor, dim: int) -> tuple[torch.Tensor, ...]:
        count = self._group.size
        assert tensor.shape[dim] % count == 0, (tuple(tensor.shape), dim, count)
        return torch.split(tensor, tensor.shape[dim] // count, dim)


def _pair(name: str, forward: Call, backward: Call) -> Call:
    """A call that runs one collective forward and another on the gradient."""

    class Pair(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, tensor: torch.Tensor, *dims: int) -> torch.Tensor:
            ctx.dims = dims
            return forward(tensor, *dims)

        @staticmethod
        def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
            return (backward(gradients[0], *ctx.dims), *(None for _ in ctx.dims))

    def call(tensor: torch.Tensor, *dims: int) -> torch.Tensor:
        result: torch.Tensor = Pair.apply(tensor, *dims)  # type: ignore[no-untyped-call]
        return result

    call.__name__ = call.__qualname__ = name
    return call


def _size_bytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()
