"""Learning-rate schedulers: made with the optimizer, stepped with it, brought to any step."""

from __future__ import annotations

import warnings

import torch
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from autopar.core.errors import InputError
from autopar.tasks import Task


def make_scheduler(task: Task, optimizer: torch.optim.Optimizer | None) -> LRScheduler | None:
    """The task's scheduler for an optimizer; ``None`` without either.

    Raises:
        InputError: The factory returned no scheduler, or one that needs a metric.
    """
    if task.scheduler is None or optimizer is None:
        return None
    scheduler = task.scheduler(optimizer)
    if isinstance(scheduler, ReduceLROnPlateau):
        raise InputError(
            f"task '{task.name}': ReduceLROnPlateau needs a metric at each step",
            hint="use a scheduler of the step number, or make it in your own loop with "
            "session.optimizer and step it there",
        )
    if not isinstance(scheduler, LRScheduler):
        raise InputError(
            f"task '{task.name}': scheduler() returned {type(scheduler).__name__}",
            hint="return a torch.optim.lr_scheduler.LRScheduler",
        )
    return scheduler


def replay(scheduler: LRScheduler, steps: int) -> None:
    """Step a fresh scheduler ``steps`` times."""
    with warnings.catch_warnings():
        # torch expects an optimizer step before each of these; they were taken before the resume
        warnings.filterwarnings("ignore", message="Detected call of `lr_scheduler.step")
        for _ in range(steps):
            scheduler.step()


def learning_rates(optimizer: torch.optim.Optimizer | None) -> list[float]:
    """Learning rate of each parameter group."""
    return [] if optimizer is None else [float(group["lr"]) for group in optimizer.param_groups]
