"""What a sync mode has to reach, and how long the runs are that it is tried with."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from autopar.core.errors import InputError, TrainingError
from autopar.core.learning import smoothed
from autopar.sync import Sync
from autopar.tasks import Task

SLACK = 3.0
"""A mode may take so many times the steps of exact training, unless told otherwise."""
FIRST_TRY = 1.5
"""Length of a mode's first run, in steps that exact training needs to the loss. Twice as long a
one follows when the loss was missed, and so on up to the slack."""
PHASED_TRIES = (1.0, 1.25)
"""First lengths for modes that divide the run they are in into phases: what such a mode does by
the time it reaches the loss is what it will do in training only when the run ends soon after."""


@dataclass(frozen=True, kw_only=True)
class Goal:
    """What a mode has to reach.

    Attributes:
        target: Smoothed loss.
        window: Losses in it.
        exact_steps: Steps of exact training to it, by seed.
        slack: Most steps of a mode, over those of exact training.
    """

    target: float
    window: int
    exact_steps: Sequence[float]
    slack: float = SLACK

    def lengths(self, sync: Sync, seed: int) -> list[int]:
        """Steps of the runs that a mode is tried with, ascending.

        Multiples of what the mode repeats, so that a run holds as many averages as it declares.
        """
        mode = sync.mode
        ladder = list(PHASED_TRIES) if mode.divides_run else []
        factor = FIRST_TRY
        while factor < self.slack:
            ladder.append(factor)
            factor *= 2
        ladder = [*(each for each in ladder if each < self.slack), self.slack]
        period = getattr(mode, "period", 1) * (2 if mode.divides_run else 1)
        steps = [factor * self.exact_steps[seed] + self.window for factor in ladder]
        return [math.ceil(each / period) * period for each in steps]


def target_of(
    exact: Sequence[Sequence[float]], job: Task, wanted: float | None, window: int
) -> tuple[float, list[str]]:
    """The loss to reach, and what to know about it.

    Raises:
        TrainingError: Exact training does not learn.
        InputError: It does not reach the loss that the user names.
    """
    curves = [smoothed(losses, window) for losses in exact]
    worst_start, worst_end = max(c[0] for c in curves), max(c[-1] for c in curves)
    worst_best = max(min(c) for c in curves)
    steps = len(exact[0])
    if wanted is not None and worst_best > wanted:
        raise InputError(
            f"exact training reaches loss {worst_best:.4g} in {steps} steps, not {wanted:.4g}",
            hint="raise --probe-steps or --target-loss",
        )
    if wanted is not None:
        return wanted, []
    if job.target_loss is not None and worst_best <= job.target_loss:
        return job.target_loss, []
    if not worst_end < worst_start:
        raise TrainingError(
            f"the loss of '{job.name}' does not fall in {steps} steps "
            f"({worst_start:.4g} to {worst_end:.4g})",
            hint="raise --probe-steps, or check learning rate and data of the task",
        )
    if job.target_loss is None:
        return worst_end, []
    missed = (
        f"exact training does not reach the task's loss {job.target_loss:.4g} in {steps} steps; "
        f"multipliers are those to {worst_end:.4g}"
    )
    return worst_end, [missed]
