"""Facts about a task's optimizer, found by stepping it on a tiny parameter."""

from __future__ import annotations

import io
import pickle
from collections.abc import Iterable
from typing import Any

import torch

from autopar.core.errors import InputError
from autopar.graph import OptimizerState
from autopar.tasks import Task

_SIDE = 64


def make_optimizer(task: Task, parameters: Iterable[torch.nn.Parameter]) -> torch.optim.Optimizer:
    """The task's optimizer over some parameters.

    Raises:
        InputError: The factory failed or returned something else.
    """
    try:
        optimizer = task.optimizer(list(parameters))
    except Exception as error:
        raise InputError(
            f"task '{task.name}': optimizer(params) raised {type(error).__name__}: {error}",
            hint="return a torch.optim.Optimizer over the parameters it is given",
        ) from error
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise InputError(
            f"task '{task.name}': optimizer(params) returned {type(optimizer).__name__}, "
            "a torch.optim.Optimizer is needed"
        )
    return optimizer


def optimizer_state(task: Task) -> OptimizerState:
    """Name, and state bytes per parameter byte (step counters and other scalars left out).

    Raises:
        InputError: The factory failed, or a step without a closure is not possible.
    """
    parameter = torch.nn.Parameter(torch.full((_SIDE, _SIDE), 0.5))
    optimizer = make_optimizer(task, [parameter])
    parameter.grad = torch.full_like(parameter, 1e-3)
    try:
        optimizer.step()
    except Exception as error:
        raise InputError(
            f"task '{task.name}': optimizer.step() raised {type(error).__name__}: {error}",
            hint="use an optimizer that steps without a closure",
        ) from error
    kept = sum(
        value.numel() * value.element_size()
        for state in optimizer.state.values()
        for value in _tensors(state)
        if value.dim() > 0
    )
    size = parameter.numel() * parameter.element_size()
    return OptimizerState(
        name=type(optimizer).__name__, state_bytes_per_parameter_byte=kept / size
    )


def pickle_optimizer(task: Task) -> bytes | None:
    """The task's optimizer over a placeholder parameter, for another process to adopt.

    Returns:
        Its pickle, or ``None`` when the class cannot be pickled (defined inside a function).
    """
    optimizer = make_optimizer(task, [torch.nn.Parameter(torch.zeros(1))])
    buffer = io.BytesIO()
    try:
        pickle.dump(optimizer, buffer)
        pickle.loads(buffer.getvalue())
    except (pickle.PicklingError, AttributeError, TypeError, ImportError):
        return None
    return buffer.getvalue()


def adopt_optimizer(data: bytes, parameters: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
    """Unpickle an optimizer of :func:`pickle_optimizer` and give it real parameters."""
    optimizer: torch.optim.Optimizer = pickle.loads(data)
    optimizer.param_groups[0]["params"] = parameters
    optimizer.state.clear()
    return optimizer


def _tensors(state: Any) -> list[torch.Tensor]:
    values = state.values() if isinstance(state, dict) else [state]
    return [v for v in values if isinstance(v, torch.Tensor)]
