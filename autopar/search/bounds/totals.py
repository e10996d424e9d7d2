"""Seconds of the blocks of many groups, on every kind of pipeline rank, as arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from autopar.search.bounds.chunked import prefix_sums, runs
from autopar.search.bounds.row import Row

Array = npt.NDArray[np.float64]
Indices = npt.NDArray[np.intp]
SHARING = (0, 2, 3)
"""ZeRO levels that change what happens inside a microbatch; level 1 is like 0."""
MOST_UNEVEN = 4.0
"""The fullest rank is looked for up to this factor of the mean."""
HALVINGS = 9
"""Steps of that: it is found to less than a hundredth."""


@dataclass(frozen=True, kw_only=True)
class Totals:
    """Seconds per block ``[group, sharing, level, block]``.

    Attributes:
        forward: Forward, the same at each level: that axis has one entry.
        work: Forward, backward and recompute.
        weight: Part of backward that only weight gradients need ``[group, block]``.
    """

    forward: Array
    work: Array
    weight: Array

    @cached_property
    def forward_sums(self) -> Array:
        """Forward before each boundary."""
        return prefix_sums(self.forward)

    @cached_property
    def work_sums(self) -> Array:
        """Work before each boundary."""
        return prefix_sums(self.work)

    @cached_property
    def weight_sums(self) -> Array:
        """Weight part before each boundary."""
        return prefix_sums(self.weight)


@dataclass(frozen=True, kw_only=True)
class Collectives:
    """Seconds of the collectives of a microbatch beside a block ``[group, block]``.

    Attributes:
        gather: Of its weights.
        scatter: Of its gradients.
        contention: Part of the shorter one that shows where compute and a collective meet.
    """

    gather: Array
    scatter: Array
    contention: float


def totals_of(
    rows: Sequence[Row], row_of: Indices, microbatches: Array, beside: Collectives
) -> Totals:
    """All sharing levels and recompute levels.

    Args:
        rows: The different ones of the groups.
        row_of: Which of them is each group's.
        microbatches: Of each group.
        beside: Collectives of the sharing levels.
    """
    share = ((microbatches - 1) / microbatches)[:, None]
    adding = np.array([row.accumulate for row in rows])[row_of] * share
    forward, backward, full, selective, weight = (
        np.array([getattr(row.seconds, name) for row in rows])[row_of]
        for name in ("forward", "backward", "full", "selective", "weight")
    )
    shape = (len(row_of), len(SHARING), 3, forward.shape[1])
    forwards, works = np.empty((*shape[:2], 1, shape[3])), np.empty(shape)
    for index, zero in enumerate(SHARING):
        f = _beside(forward, beside.gather, beside.contention) if zero == 3 else forward
        collective = beside.scatter + (beside.gather if zero == 3 else 0.0)
        b = _beside(backward, collective, beside.contention) if zero else backward
        both = f + b + adding
        again = _beside(full, beside.gather, beside.contention) if zero == 3 else full
        forwards[:, index, 0] = f
        works[:, index, 0] = both
        works[:, index, 1] = both + selective
        works[:, index, 2] = both + again
    return Totals(forward=forwards, work=works, weight=weight)


def _beside(compute: Array, collective: Array, contention: float) -> Array:
    """A collective beside compute, as :func:`~.blocks.block_seconds` prices it."""
    longer, shorter = np.maximum(compute, collective), np.minimum(compute, collective)
    return np.asarray(longer + contention * shorter)


class RankTotals:
    """Totals of pipeline ranks that may differ in device and surroundings.

    Args:
        kinds: One entry per kind of rank, the same groups in each.
        of_rank: Kind of every rank ``[group, rank]``.
    """

    def __init__(self, kinds: Sequence[Totals], of_rank: Indices) -> None:
        self.kinds = kinds
        self.of_rank = of_rank

    @cached_property
    def least(self) -> Totals:
        """Every block where it is fastest."""
        if len(self.kinds) == 1:
            return self.kinds[0]
        return Totals(
            forward=np.minimum.reduce([kind.forward for kind in self.kinds]),
            work=np.minimum.reduce([kind.work for kind in self.kinds]),
            weight=np.minimum.reduce([kind.weight for kind in self.kinds]),
        )

    @cached_property
    def slowest_work(self) -> Array:
        """Work of every block where it is slowest."""
        return np.asarray(np.maximum.reduce([kind.work for kind in self.kinds]))

    @cached_property
    def forward_part(self) -> Array:
        """Largest part of a block's work that is forward ``[group, sharing, level]``."""
        ratios = [
            np.divide(k.forward, k.work, out=np.zeros_like(k.work), where=k.work > 0)
            for k in self.kinds
        ]
        return np.asarray(np.maximum.reduce(ratios).max(axis=3))

    @cached_property
    def return_part(self) -> Array:
        """Least part of a block's work that goes up at once where weight gradients wait."""
        ratios = []
        for k in self.kinds:
            back = k.work - k.forward - k.weight[:, None, None]
            ratios.append(np.divide(back, k.work, out=np.ones_like(back), where=k.work > 0))
        return np.asarray(np.clip(np.minimum.reduce(ratios).min(axis=3), 0.0, 1.0))

    @cached_property
    def fullest(self) -> Array:
        """Least work of the fullest of unlike ranks ``[group, sharing, level]``.

        Ranks hold runs of blocks in order, so each takes as many as fit into a limit; the largest
        limit found for which blocks are left over is a bound.
        """
        sums = np.stack([kind.work_sums for kind in self.kinds])
        shape, blocks = sums.shape[2:], sums.shape[1] - 1
        groups = np.arange(shape[0])
        held = [sums[of, :, groups].reshape(shape[0], blocks + 1, -1) for of in self.of_rank.T]
        held = [np.moveaxis(each, 1, 0) for each in held]
        low = np.maximum(self.balanced[0], self.least.work.max(axis=3)).reshape(shape[0], -1)
        high = MOST_UNEVEN * low
        for _ in range(HALVINGS):
            limit = (low + high) / 2
            place = np.zeros(limit.shape, dtype=np.intp)
            for each in held:
                start = np.take_along_axis(each, place[None], axis=0)[0]
                room = (start + limit) * (1 + 1e-12)
                place = np.count_nonzero(each <= room, axis=0) - 1
            fits = place == blocks
            low, high = np.where(fits, low, limit), np.where(fits, limit, high)
        return np.asarray(low.reshape(shape))

    def weights_of(self, sharing: Indices, level: Indices) -> list[Array]:
        """Weight of each pipeline rank in :attr:`balanced` ``[group, column]``."""
        kinds = np.stack(self._weights)[:, :, sharing, level]
        if len(kinds) == 1:
            return [kinds[0]] * self.of_rank.shape[1]
        groups = np.arange(len(self.of_rank))
        return [kinds[of, groups] for of in self.of_rank.T]

    @cached_property
    def _weights(self) -> list[Array]:
        """Weights of the kinds; those of all ranks of a group sum to 1."""
        counts = [(self.of_rank == k).sum(axis=1)[:, None, None] for k in range(len(self.kinds))]
        speeds = [1 / np.maximum(kind.work.sum(axis=3), 1e-300) for kind in self.kinds]
        every = np.add.reduce([n * v for n, v in zip(counts, speeds, strict=True)])
        return [np.where(n > 0, v / every, np.inf) for n, v in zip(counts, speeds, strict=True)]

    @cached_property
    def balanced(self) -> tuple[Array, Array]:
        """Least mean work of the ranks and the least weight in it ``[group, sharing, level]``.

        Ranks are weighed by their speed: whatever the boundaries, ``sum_q v_q x_q`` is at least
        ``sum_b min_q v_q w_bq``. Equal ranks weigh ``1 / ranks``.
        """
        ranks = self.of_rank.shape[1]
        if len(self.kinds) == 1:
            mean = self.kinds[0].work.sum(axis=3) / ranks
            return mean, np.full_like(mean, 1 / ranks)
        weighed = [
            np.where(np.isfinite(w)[..., None], w[..., None] * kind.work, np.inf)
            for w, kind in zip(self._weights, self.kinds, strict=True)
        ]
        mean = np.minimum.reduce(weighed).sum(axis=3)
        return np.asarray(mean), np.asarray(np.minimum.reduce(self._weights))

    def runs(self, name: str, cuts: tuple[int, ...], rank_of: Indices) -> Array:
        """Sums of each stage on the rank that holds it, along the first axis.

        Args:
            name: ``forward_sums``, ``work_sums`` or ``weight_sums``.
            cuts: Stage boundaries.
            rank_of: Rank of each stage.
        """
        first = runs(getattr(self.kinds[0], name), cuts)
        for number, kind in enumerate(self.kinds[1:], start=1):
            mine = (self.of_rank[:, rank_of] == number).T
            mine = mine.reshape(*mine.shape, *[1] * (first.ndim - 2))
            first = np.where(mine, runs(getattr(kind, name), cuts), first)
        return first
