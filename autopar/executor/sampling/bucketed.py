"""Batches of samples of similar length."""

from __future__ import annotations

import torch

from autopar.executor.sampling.base import Sampler, described
from autopar.executor.sampling.streams import Purpose, stream
from autopar.tasks import Task

POOL_BATCHES = 32
"""Batches whose samples are sorted together: more waste less padding, fewer mix better."""


class Bucketed(Sampler):
    """Every sample once per epoch, and little padding: a batch has samples of similar length.

    The epoch's order is cut into pools of :data:`POOL_BATCHES` batches, each pool sorted by the
    dataset's ``lengths`` and cut into batches; then the epoch's batches are shuffled.

    Raises:
        InputError: The dataset tells no lengths, or is smaller than one global batch.
    """

    def __init__(self, task: Task, seed: int, count: int) -> None:
        super().__init__(task, seed, count)
        self.need_whole_batch()
        self._lengths = described(task, "lengths", "sampler 'bucketed'")
        self._batches: tuple[int, torch.Tensor] | None = None

    def indices(self, step: int) -> torch.Tensor:
        """One of the epoch's batches."""
        epoch, within = divmod(step, self.size // self.count)
        if self._batches is None or self._batches[0] != epoch:
            self._batches = (epoch, self._epoch(epoch))
        return self._batches[1][within]

    def _epoch(self, epoch: int) -> torch.Tensor:
        """Batches of an epoch, ``[batches, count]``."""
        order = torch.randperm(self.size, generator=stream(self.seed, Purpose.EPOCH, epoch))
        order = order[: self.size // self.count * self.count]
        pools = [
            pool[torch.sort(self._lengths[pool], stable=True).indices]
            for pool in torch.split(order, POOL_BATCHES * self.count)
        ]
        batches = torch.cat(pools).view(-1, self.count)
        chosen = torch.randperm(len(batches), generator=stream(self.seed, Purpose.POOL, epoch))
        return batches[chosen]
