"""One block of the global batch per replica."""

from __future__ import annotations

import torch

from autopar.executor.sampling.base import Split


class ContiguousSplit(Split):
    """The first replica takes the first samples, the next one the next."""

    def positions(
        self, step: int, replica: int, lengths: torch.Tensor | None = None
    ) -> torch.Tensor:
        """The replica's block."""
        return torch.arange(self.count)[self.block(replica)]
