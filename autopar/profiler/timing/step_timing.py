"""A whole training step of one process, timed in its parts under a real run's conditions.

A block in a loop of its own finds its weights, code and allocations where it left them. In a
training step the optimizer, the other layers and the other ranks come in between; what that costs
is measured here on the whole model and spread over its blocks.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from autopar.profiler.timing.blocks import (
    Agree,
    Between,
    Moment,
    clock_of,
    no_collection,
    repeats_of,
)
from autopar.profiler.timing.policy import MeasurePolicy
from autopar.tasks import Task
from autopar.trace import build_model
from autopar.trace.export import call_model, make_batch

PAUSE_S = 1e-3
"""Between steps: a rank leaves the core, as it does while it waits for others."""


class Trainable(Protocol):
    """A model that can run forward and backward.

    Attributes:
        parameters: What an optimizer steps.
    """

    parameters: list[torch.nn.Parameter]

    def forward(self) -> list[torch.Tensor]:
        """Results that gradients come back to."""
        ...

    def seeds(self, results: list[torch.Tensor]) -> list[torch.Tensor]:
        """Gradients of the results."""
        ...

    def clear(self) -> None:
        """Forget gradients."""
        ...


class Eager:
    """The user's own model and loss on a batch, not traced.

    Args:
        task: The task.
        samples: Size of the batch.
        device: Where it runs.
    """

    def __init__(self, task: Task, samples: int, device: str) -> None:
        self._model = build_model(task).to(device)
        self._loss = task.loss
        batch: Any = make_batch(task, samples)
        self._inputs, self._target = torch.utils._pytree.tree_map_only(
            torch.Tensor, lambda t: t.to(device), batch
        )
        self.parameters = list(self._model.parameters())

    def forward(self) -> list[torch.Tensor]:
        """The loss."""
        return [self._loss(call_model(self._model, self._inputs), self._target)]

    @staticmethod
    def seeds(results: list[torch.Tensor]) -> list[torch.Tensor]:
        """One."""
        return [torch.ones_like(r) for r in results]

    def clear(self) -> None:
        """Forget gradients."""
        for parameter in self.parameters:
            parameter.grad = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Steps:
    """Repeated steps; one entry per step in each field.

    Attributes:
        forward_s: Forward.
        backward_s: Backward.
        optimizer_s: Optimizer step and clearing of gradients; zeros without an optimizer.
    """

    forward_s: tuple[float, ...]
    backward_s: tuple[float, ...]
    optimizer_s: tuple[float, ...]


def time_steps(
    model: Trainable,
    optimizer: torch.optim.Optimizer | None,
    device: str,
    policy: MeasurePolicy,
    *,
    agree: Agree,
    align: Callable[[], None],
) -> Steps | None:
    """Forward, backward, optimizer, a barrier; again and again.

    Args:
        model: What is trained.
        optimizer: Over its parameters.
        device: Where it lives.
        policy: Warm-up, repeats and limits.
        agree: Makes a number equal on all ranks.
        align: Waits for all ranks.

    Returns:
        The steps, or ``None`` when one takes longer than ``policy.longest_pass_s``.
    """
    mark, between = clock_of(device)
    once = spent = 0.0
    for _ in range(policy.warmup):
        once = agree(sum(_step(model, optimizer, mark, between)))
        spent += once
        if spent > policy.long_point_s / 2:
            break
    if once > policy.longest_pass_s:
        return None
    rows = []
    with no_collection():
        for _ in range(repeats_of(once + PAUSE_S, policy)):
            time.sleep(PAUSE_S)
            align()
            rows.append(_step(model, optimizer, mark, between))
    forward, backward, stepping = zip(*rows, strict=True)
    return Steps(forward_s=forward, backward_s=backward, optimizer_s=stepping)


def _step(
    model: Trainable,
    optimizer: torch.optim.Optimizer | None,
    mark: Callable[[], Moment],
    between: Between,
) -> tuple[float, float, float]:
    start = mark()
    results = model.forward()
    middle = mark()
    torch.autograd.backward(results, model.seeds(results))
    end = mark()
    del results
    if optimizer is not None:
        optimizer.step()
    model.clear()
    return between(start, middle), between(middle, end), between(end, mark())
