"""Sampling with replacement by weight."""

from __future__ import annotations

import torch

from autopar.core.errors import InputError
from autopar.data.described import class_weights
from autopar.executor.sampling.base import Sampler, described
from autopar.executor.sampling.streams import Purpose, stream
from autopar.tasks import Task


class Weighted(Sampler):
    """Each sample of a batch is drawn with a probability proportional to its weight.

    Weights are the dataset's ``weights``. A dataset that has none but has ``targets`` (class
    numbers) gets those that make its classes equally frequent. Samples can come again, in one
    batch too.

    Raises:
        InputError: Neither, or no positive weight.
    """

    def __init__(self, task: Task, seed: int, count: int) -> None:
        super().__init__(task, seed, count)
        targets = getattr(task.dataset, "targets", None)
        if targets is not None and getattr(task.dataset, "weights", None) is None:
            weights = class_weights(targets)
        else:
            weights = described(task, "weights", "sampler 'weighted'")
        self._edges = weights.cumsum(0)
        if not float(self._edges[-1]) > 0:
            raise InputError(
                f"all weights of the dataset of task '{task.name}' are 0",
                hint="give some sample a positive weight",
            )
        self._drawable = int(torch.nonzero(weights)[-1])

    def indices(self, step: int) -> torch.Tensor:
        """Draws by inversion: sample ``i`` owns ``[edge[i - 1], edge[i])`` of the total weight."""
        generator = stream(self.seed, Purpose.DRAW, step)
        points = torch.rand(self.count, generator=generator, dtype=torch.float64)
        found = torch.searchsorted(self._edges, points * self._edges[-1], right=True)
        return found.clamp_(max=self._drawable)  # a product may round up to the last edge
