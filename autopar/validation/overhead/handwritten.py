"""GPT training as a careful user of torch writes it: what our step is timed against.

Each function returns a step: it takes a replica's samples and returns the loss it knows. The
references spare themselves whatever torch lets them spare: DDP's gradients are views of its
buckets and it broadcasts no buffers (GPT has none); pipeline stages call the blocks themselves.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.fsdp._fully_shard._fsdp_collectives import DefaultReduceScatter
from torch.distributed.pipelining import PipelineStage, Schedule1F1B
from torch.nn.parallel import DistributedDataParallel

from autopar.tasks import Task
from autopar.trace import build_model

Step = Callable[[torch.Tensor, torch.Tensor], torch.Tensor | None]
"""``(inputs, target) -> loss of this rank's samples``, where it is known."""


def data_parallel(task: Task, seed: int) -> Step:
    """Replicas under DistributedDataParallel."""
    model = DistributedDataParallel(
        build_model(task, seed=seed), broadcast_buffers=False, gradient_as_bucket_view=True
    )
    return _plain(model, task)


def sharded(task: Task, seed: int, *, tuned: bool = False) -> Step:
    """``fully_shard`` on every block and on the root.

    Args:
        task: The task.
        seed: Of the weights.
        tuned: With what helps on gloo, as autopar does it: reduce-scatter as an exchange and a
            local sum, gathers as futures, and explicit prefetching.
    """
    model: Any = build_model(task, seed=seed)
    blocks: list[Any] = list(model.network.transformer.h)
    modules: list[FSDPModule] = [fully_shard(module) for module in (*blocks, model)]
    if tuned:
        for module in modules:
            module.set_custom_reduce_scatter(_Exchange())
            module.set_force_sum_reduction_for_comms(True)
            module._set_unshard_async_op(True)
        for earlier, later in pairwise(modules[:-1]):
            earlier.set_modules_to_forward_prefetch([later])
            later.set_modules_to_backward_prefetch([earlier])
    return _plain(model, task)


def _plain(model: nn.Module, task: Task) -> Step:
    optimizer = task.optimizer(model.parameters())

    def step(inputs: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        loss = task.loss(model(inputs), target)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return step


class _Exchange(DefaultReduceScatter):
    """Gloo's own reduce-scatter sends twice the bytes."""

    def __call__(
        self,
        output_tensor: torch.Tensor,
        input_tensor: torch.Tensor,
        group: dist.ProcessGroup,
        op: Any,
        async_op: bool = False,
    ) -> Any:
        received = torch.empty_like(input_tensor)
        dist.all_to_all_single(received, input_tensor, group=group)
        torch.sum(received.view(group.size(), -1), 0, out=output_tensor)
        return None


class _First(nn.Module):
    """Embeddings and the first blocks."""

    def __init__(self, transformer: Any, count: int) -> None:
        super().__init__()
        self.wte, self.wpe, self.h = transformer.wte, transformer.wpe, transformer.h[:count]

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        places = torch.arange(ids.shape[1], device=ids.device).unsqueeze(0)
        hidden: torch.Tensor = self.wte(ids) + self.wpe(places)
        return _through(self.h, hidden)


class _Last(nn.Module):
    """The other blocks and the head, whose weight is that of the embedding."""

    def __init__(self, network: Any, count: int) -> None:
        super().__init__()
        transformer = network.transformer
        self.wte, self.h, self.ln_f = transformer.wte, transformer.h[count:], transformer.ln_f

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        hidden = self.ln_f(_through(self.h, hidden))
        return nn.functional.linear(hidden, self.wte.weight)


def _through(blocks: Any, hidden: torch.Tensor) -> torch.Tensor:
    for block in blocks:
        found = block(hidden)
        hidden = found[0] if isinstance(found, tuple) else found
    return hidden


def pipelined(task: Task, seed: int, *, microbatches: int) -> Step:
    """Two stages under torch's 1F1B schedule; the tied weight's gradient is summed by hand."""
    network: Any = build_model(task, seed=seed).network
    half = len(network.transformer.h) // 2
    rank = dist.get_rank()
    module = _Last(network, half) if rank else _First(network.transformer, half)
    stage = PipelineStage(module, rank, 2, torch.device("cpu"))
    schedule = Schedule1F1B(stage, microbatches, loss_fn=task.loss)
    optimizer = task.optimizer(module.parameters())

    def step(inputs: torch.Tensor, target: torch.Tensor) -> torch.Tensor | None:
        losses: list[torch.Tensor] = []
        if rank:
            schedule.step(target=target, losses=losses)
        else:
            schedule.step(inputs)
        dist.all_reduce(module.wte.weight.grad)
        optimizer.step()
        optimizer.zero_grad()
        return torch.stack(losses).mean() if losses else None

    return step


def with_mean_loss(step: Step) -> Step:
    """The same, with the mean loss over replicas on every rank, as scripts log it."""

    def logged(inputs: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        loss = step(inputs, target)
        assert loss is not None
        dist.all_reduce(loss, op=dist.ReduceOp.AVG)
        return torch.tensor(loss.item())

    return logged
