"""Blocks of a permutation of the global batch."""

from __future__ import annotations

import torch

from autopar.executor.sampling.base import Split
from autopar.executor.sampling.streams import Purpose, stream


class RandomSplit(Split):
    """Blocks after a permutation drawn from ``(seed, step)``."""

    def positions(
        self, step: int, replica: int, lengths: torch.Tensor | None = None
    ) -> torch.Tensor:
        """The replica's block of the permutation."""
        generator = stream(self.seed, Purpose.PERMUTATION, step)
        return torch.randperm(self.count, generator=generator)[self.block(replica)]
