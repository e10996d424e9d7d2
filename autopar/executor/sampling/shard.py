"""A global batch dealt out like cards."""

from __future__ import annotations

import torch

from autopar.executor.sampling.base import Split


class ShardSplit(Split):
    """Dealt out one by one: ``r, r + replicas, r + 2 * replicas, ...`` with equal shares.

    With uneven shares a replica that has its share of a microbatch sits out the rest of it.
    """

    def positions(
        self, step: int, replica: int, lengths: torch.Tensor | None = None
    ) -> torch.Tensor:
        """What the replica is dealt."""
        turns = [(turn, owner) for owner, share in enumerate(self.shares) for turn in range(share)]
        owners = torch.tensor([owner for _, owner in sorted(turns)])
        return torch.nonzero(owners.repeat(self.microbatches) == replica).flatten()
