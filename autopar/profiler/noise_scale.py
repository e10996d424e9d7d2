"""The gradient noise scale of a task, from gradient norms at two batch sizes.

McCandlish et al. 2018, An Empirical Model of Large-Batch Training (arXiv:1812.06162), appendix
A.1: with squared norms of gradients over ``b`` and ``B`` samples,

    |G|^2     = (B |G_B|^2 - b |G_b|^2) / (B - b)
    tr(Sigma) = (|G_b|^2 - |G_B|^2) / (1/b - 1/B)

have no bias. Both are averaged before they are divided, as their ratio has one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import fmean
from typing import Any

import torch
from torch.utils import _pytree as pytree
from torch.utils.data import default_collate

from autopar.core.errors import InputError
from autopar.core.estimate import Estimate
from autopar.graph.noise import GradientNoise, NoisePoint
from autopar.profiler.optimizer import make_optimizer
from autopar.tasks import Task
from autopar.trace import build_model
from autopar.trace.export import call_model

PARTS = 8
"""Smaller gradients in a larger one."""
REPEATS = 8
"""Larger gradients at each point."""
POINTS = 3
"""Points along the training, its beginning and end among them."""
ERRORS = 2.0
"""Standard errors of the range."""

Pair = tuple[float, float]


def measure_noise_scale(
    task: Task,
    *,
    steps: int,
    batch: int,
    device: str = "cpu",
    repeats: int = REPEATS,
    progress: Callable[[str, int, int], None] | None = None,
) -> GradientNoise:
    """Train for some steps with real weights and measure the noise scale on the way.

    Args:
        task: The task.
        steps: Steps of the training; 0 measures at the first weights only.
        batch: Samples of the smaller gradients, and of each training step.
        device: ``cpu`` or ``cuda``.
        repeats: Larger gradients at each point, at least 2.
        progress: ``progress(stage, done, total)``.

    Raises:
        InputError: ``steps`` is negative, or the model cannot be built.
    """
    if steps < 0:
        raise InputError(f"noise scale after {steps} steps", hint="use 0 or more steps")
    model = build_model(task, device=device)
    optimizer = make_optimizer(task, model.parameters())
    training = torch.Generator().manual_seed(2 * task.seed + 1)
    looking = torch.Generator().manual_seed(2 * task.seed + 2)
    at = sorted({round(steps * i / (POINTS - 1)) for i in range(POINTS)})
    points: list[NoisePoint] = []
    for step in range(steps + 1):
        if step in at:
            if progress is not None:
                progress("gradient noise", len(points), len(at))
            pairs = [_norms(task, model, batch, looking, device) for _ in range(repeats)]
            points.append(noise_point(step, pairs, batch, PARTS * batch))
        if step < steps:
            optimizer.zero_grad()
            torch.autograd.backward(_loss(task, model, batch, training, device))
            optimizer.step()
    return GradientNoise(
        small_batch=batch,
        big_batch=PARTS * batch,
        repeats=repeats,
        train_batch=batch,
        points=tuple(points),
    )


def noise_point(step: int, pairs: Sequence[Pair], small: int, big: int) -> NoisePoint:
    """The noise from squared norms.

    Args:
        step: Optimizer steps done before.
        pairs: Mean squared norm over ``small`` samples, squared norm over the same ``big`` ones.
        small: Samples.
        big: Samples.
    """
    squared = [(big * b - small * s) / (big - small) for s, b in pairs]
    traces = [(s - b) / (1 / small - 1 / big) for s, b in pairs]
    return NoisePoint(
        step=step,
        gradient_squared=fmean(squared),
        noise_trace=fmean(traces),
        scale=_ratio(traces, squared),
    )


def _ratio(above: Sequence[float], below: Sequence[float]) -> Estimate | None:
    """Ratio of the means, with the range of the jackknife; ``None`` when it has no sense."""
    n = len(below)
    totals = [(sum(above) - a, sum(below) - b) for a, b in zip(above, below, strict=True)]
    if sum(below) <= 0 or any(b <= 0 for _, b in totals):
        return None
    value = max(0.0, sum(above) / sum(below))
    left = [a / b for a, b in totals]
    mean = fmean(left)
    error = math.sqrt((n - 1) / n * math.fsum((x - mean) ** 2 for x in left))
    return Estimate(
        value=value,
        low=max(0.0, value - ERRORS * error),
        high=value + ERRORS * error,
        source="measured",
    )


def _norms(
    task: Task, model: torch.nn.Module, batch: int, source: torch.Generator, device: str
) -> Pair:
    """Mean squared norm of ``PARTS`` gradients, and squared norm of their mean."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    total: list[torch.Tensor] = [torch.zeros_like(p) for p in parameters]
    squares = []
    for _ in range(PARTS):
        loss = _loss(task, model, batch, source, device)
        grads = torch.autograd.grad(loss, parameters, allow_unused=True)
        found = [(t, g) for t, g in zip(total, grads, strict=True) if g is not None]
        squares.append(_squared([g for _, g in found]))
        for whole, part in found:
            whole.add_(part, alpha=1 / PARTS)
    return fmean(squares), _squared(total)


def _squared(tensors: Sequence[torch.Tensor]) -> float:
    return float(sum(t.double().square().sum() for t in tensors))


def _loss(
    task: Task, model: torch.nn.Module, count: int, source: torch.Generator, device: str
) -> torch.Tensor:
    inputs, target = _samples(task, count, source, device)
    return task.loss(call_model(model, inputs), target)


def _samples(task: Task, count: int, source: torch.Generator, device: str) -> tuple[Any, Any]:
    """Random samples of the dataset, if the task has one, else of ``batch``."""
    if task.dataset is None:
        made = task.batch(count, source)
    else:
        chosen = torch.randint(len(task.dataset), (count,), generator=source)
        made = default_collate([task.dataset[int(i)] for i in chosen])
    inputs, target = pytree.tree_map_only(torch.Tensor, lambda t: t.to(device), tuple(made))
    return inputs, target
