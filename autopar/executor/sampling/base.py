"""The two choices of a step's data: samplers choose samples, splits share them out."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from typing import Any

import torch

from autopar.core.errors import InputError
from autopar.tasks import Task


class Sampler(abc.ABC):
    """Chooses the samples of each step's global batch out of the task's dataset.

    The choice depends on the seed, the step and the size of the global batch only, so that it is
    the same on every rank and under every plan.

    Args:
        task: The task; it has a dataset.
        seed: Seed of the data order.
        count: Samples in a global batch.

    Raises:
        InputError: The dataset does not tell what the sampler needs.
    """

    def __init__(self, task: Task, seed: int, count: int) -> None:
        self.task = task
        self.seed = seed
        self.count = count
        self.size = len(task.dataset)

    @abc.abstractmethod
    def indices(self, step: int) -> torch.Tensor:
        """Dataset indices of a step's global batch, int64 of shape ``[count]``."""

    def need_whole_batch(self) -> None:
        """Refuse a dataset that is smaller than one global batch.

        Raises:
            InputError: It is.
        """
        if self.size < self.count:
            raise InputError(
                f"the dataset of task '{self.task.name}' has {self.size} samples, one step "
                f"needs {self.count}",
                hint="use a smaller global batch",
            )


class Split(abc.ABC):
    """Shares a global batch out over replicas and their microbatches.

    Args:
        seed: Seed of the data order.
        shares: Samples in a microbatch of each replica.
        microbatches: Microbatches per replica and step.
    """

    needs_lengths = False
    """True when :meth:`positions` looks at the samples' lengths."""

    def __init__(self, *, seed: int, shares: Sequence[int], microbatches: int) -> None:
        self.seed = seed
        self.shares = tuple(shares)
        self.microbatches = microbatches

    @property
    def count(self) -> int:
        """Samples in a global batch."""
        return self.microbatches * sum(self.shares)

    @abc.abstractmethod
    def positions(
        self, step: int, replica: int, lengths: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Positions in the global batch that a replica takes, microbatch after microbatch.

        Args:
            step: The step.
            replica: The replica.
            lengths: Length of each sample of the global batch, if :attr:`needs_lengths`.
        """

    def block(self, replica: int) -> slice:
        """A replica's part of the global batch when parts lie one after another."""
        start = self.microbatches * sum(self.shares[:replica])
        return slice(start, start + self.microbatches * self.shares[replica])


def described(task: Task, name: str, what: str) -> torch.Tensor:
    """One number per sample that a dataset tells.

    Args:
        task: The task.
        name: ``lengths`` or ``weights``.
        what: Who needs it, for the error message.

    Raises:
        InputError: It does not tell, or tells another number of them, or one that is negative.
    """
    values = getattr(task.dataset, name, None)
    if values is None:
        raise InputError(
            f"{what} needs '{name}' of the samples, the dataset of task '{task.name}' has none",
            hint=f"wrap it: autopar.data.Described(dataset, {name}=...)",
        )
    found = _tensor(values, name, task)
    if found.dim() != 1 or len(found) != len(task.dataset):
        raise InputError(
            f"the dataset of task '{task.name}' has {len(task.dataset)} samples and "
            f"{list(found.shape)} {name}",
            hint="give one per sample",
        )
    if not bool(torch.isfinite(found).all()) or bool((found < 0).any()):
        raise InputError(
            f"{name} of the dataset of task '{task.name}' must be finite and 0 or more, they go "
            f"from {float(found.min()):g} to {float(found.max()):g}"
        )
    return found


def _tensor(values: Any, name: str, task: Task) -> torch.Tensor:
    try:
        return torch.as_tensor(values, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(
            f"{name} of the dataset of task '{task.name}' are no numbers: {error}",
            hint="give a list or tensor, one number per sample",
        ) from error
