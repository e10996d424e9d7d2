"""Sampling without replacement."""

from __future__ import annotations

import torch

from autopar.executor.sampling.base import Sampler
from autopar.executor.sampling.streams import Purpose, stream
from autopar.tasks import Task


class Shuffle(Sampler):
    """Every sample once per epoch, in an order drawn for the epoch.

    Step ``s`` of an epoch takes positions ``s * N`` to ``(s + 1) * N`` of the order; the last
    ``len % N`` positions are left out.

    Raises:
        InputError: The dataset is smaller than one global batch.
    """

    def __init__(self, task: Task, seed: int, count: int) -> None:
        super().__init__(task, seed, count)
        self.need_whole_batch()
        self._order: tuple[int, torch.Tensor] | None = None

    def indices(self, step: int) -> torch.Tensor:
        """A piece of the epoch's order."""
        epoch, within = divmod(step, self.size // self.count)
        if self._order is None or self._order[0] != epoch:
            generator = stream(self.seed, Purpose.EPOCH, epoch)
            self._order = (epoch, torch.randperm(self.size, generator=generator))
        start = within * self.count
        return self._order[1][start : start + self.count]
