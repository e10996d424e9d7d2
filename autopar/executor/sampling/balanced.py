"""Microbatches of equal numbers of tokens."""

from __future__ import annotations

import heapq
from collections.abc import Sequence

import torch

from autopar.executor.sampling.base import Split


class BalancedSplit(Split):
    """Samples of different length are shared out so that all microbatches have equal work.

    Longest first, each sample goes to the microbatch, of any replica, that has room and then has
    the fewest tokens for its share (Graham 1969, with a limit on the number of samples). A
    replica of larger share takes proportionally more tokens.
    """

    needs_lengths = True

    def __init__(self, *, seed: int, shares: Sequence[int], microbatches: int) -> None:
        super().__init__(seed=seed, shares=shares, microbatches=microbatches)
        self._last: tuple[int, list[torch.Tensor]] | None = None

    def positions(
        self, step: int, replica: int, lengths: torch.Tensor | None = None
    ) -> torch.Tensor:
        """The replica's microbatches."""
        assert lengths is not None
        if self._last is None or self._last[0] != step:
            self._last = (step, self._share_out(lengths))
        return self._last[1][replica]

    def _share_out(self, lengths: torch.Tensor) -> list[torch.Tensor]:
        """Positions of each replica."""
        bins: list[list[list[int]]] = [[[] for _ in range(self.microbatches)] for _ in self.shares]
        # share -> heap of (tokens per sample of the share, replica, microbatch); ties go to the
        # lower numbers
        heaps: dict[int, list[tuple[float, int, int]]] = {}
        for replica, share in enumerate(self.shares):
            heaps.setdefault(share, []).extend((0.0, replica, k) for k in range(self.microbatches))
        for position in torch.sort(lengths, descending=True, stable=True).indices.tolist():
            length = float(lengths[position])
            after = {share: heap[0][0] + length / share for share, heap in heaps.items() if heap}
            share = min(after, key=lambda s: (after[s], -s))
            _, replica, k = heapq.heappop(heaps[share])
            bins[replica][k].append(position)
            if len(bins[replica][k]) < share:
                heapq.heappush(heaps[share], (after[share], replica, k))
        return [torch.tensor([p for chosen in row for p in chosen]) for row in bins]
