"""One optimizer step by the eager model in one process: what a plan is compared with."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from autopar.executor.dropout import DropoutOff
from autopar.executor.lowering import Context
from autopar.executor.optimizing.learning_rate import make_scheduler
from autopar.executor.precision import Precision, wide
from autopar.executor.weighing import counted
from autopar.trace import build_model
from autopar.trace.export import call_model

Tensors = Mapping[str, torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """What one optimizer step made, by model name.

    Attributes:
        loss: Mean loss over the global batch.
        gradients: What is compared with the mean over the global batch; of a plan, as its
            synchroniser says.
        stepped: What the optimizer took, before clipping.
        weights: After the optimizer step.
        buffers: After the step.
        gradient_rms: Root mean square over replicas of the norm of their own gradients.
    """

    loss: float
    gradients: Tensors
    stepped: Tensors
    weights: Tensors
    buffers: Tensors
    gradient_rms: float = 0.0


def reference_step(
    context: Context, scale: float = 1.0, precision: Precision | None = None
) -> StepResult:
    """The same optimizer step by the eager model alone, microbatch after microbatch.

    Args:
        context: The run.
        precision: The run's own by default.
        scale: Factor on the loss in backward, taken out of the gradients.
    """
    plan, task, device = context.plan, context.task, context.device
    precision = precision or context.precision
    model = build_model(task, seed=plan.seed).to(device)
    replicas = plan.mesh.replicas
    weights = _weights(context)
    total = 0.0
    first: dict[str, torch.Tensor] = {}
    gradients: dict[str, torch.Tensor] = {}
    squares = 0.0
    initial = {n: b.detach().clone() for n, b in model.named_buffers()}
    for replica in range(replicas):
        _set_buffers(model, initial)
        batches = context.data.microbatches(0, replica, device)
        for (inputs, target), weight in zip(batches, weights[replica], strict=True):
            with DropoutOff(), precision.autocast(device):
                loss = wide(task.loss(call_model(model, inputs), target)) * weight
            torch.autograd.backward(loss * scale)
            total += float(loss.detach())
        if replica == 0:
            first = {n: b.detach().clone() for n, b in model.named_buffers()}
        squares += _take_gradients(model, gradients, 1.0 / scale)
    _set_buffers(model, first)
    return StepResult(
        loss=total,
        gradients=gradients,
        stepped=gradients,
        gradient_rms=math.sqrt(replicas * squares),
        weights=optimizer_step(context, gradients),
        buffers=first,
    )


def _take_gradients(model: torch.nn.Module, into: dict[str, torch.Tensor], factor: float) -> float:
    """Add a replica's share of the mean gradients to a sum; returns the square of its norm."""
    square = 0.0
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            parameter.grad.mul_(factor)
            square += float(parameter.grad.double().square().sum())
            into[name] = into[name] + parameter.grad if name in into else parameter.grad
            parameter.grad = None
    return square


def _weights(context: Context) -> list[list[float]]:
    """What each microbatch of each replica counts in the mean over the global batch."""
    plan, task = context.plan, context.task
    counts = []
    for replica in range(plan.mesh.replicas):
        if task.weight is None:
            counts.append([float(plan.replica_microbatch(replica))] * plan.microbatches)
        else:
            batches = context.data.microbatches(0, replica, context.device)
            counts.append([counted(task, target) for _, target in batches])
    total = sum(map(sum, counts))
    return [[count / total for count in row] for row in counts]


def optimizer_step(context: Context, gradients: Tensors) -> Tensors:
    """The weights that one process makes of some gradients: clipping and one optimizer step."""
    plan, task = context.plan, context.task
    model = build_model(task, seed=plan.seed).to(context.device)
    parameters = dict(model.named_parameters())
    for name, gradient in gradients.items():
        parameters[name].grad = gradient.clone()
    optimizer = task.optimizer(model.parameters())
    make_scheduler(task, optimizer)  # which may set the first learning rate
    if plan.clip_norm is not None:
        torch.nn.utils.clip_grad_norm_(model.parameters(), plan.clip_norm)
    optimizer.step()
    return {name: parameter.detach() for name, parameter in parameters.items()}


def _set_buffers(model: torch.nn.Module, values: Tensors) -> None:
    for name, buffer in model.named_buffers():
        buffer.data.copy_(values[name])


def relative_norm(
    rows: Sequence[tuple[str, torch.Tensor]], expected: Tensors, *, complete: bool
) -> float:
    """sqrt(sum |found - expected|^2 / sum |expected|^2); a missing tensor counts as zeros."""
    difference = norm = 0.0
    names = {name for name, _ in rows}
    for name, tensor in rows:
        value = tensor.double()
        wanted = expected[name].double() if name in expected else torch.zeros_like(value)
        difference += float((value - wanted).square().sum())
        norm += float(wanted.square().sum())
    for name in set(expected) - names if complete else ():
        square = float(expected[name].double().square().sum())
        difference, norm = difference + square, norm + square
    if norm == 0.0:
        return 0.0 if difference == 0.0 else float("inf")
    return float((difference / norm) ** 0.5)


def relative_difference(values: Tensors, expected: Tensors) -> float:
    """Relative norm of the difference of two sets of tensors with the same names."""
    return relative_norm(list(values.items()), expected, complete=True)
