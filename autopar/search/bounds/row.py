"""Blocks divided in one way, as arrays over the blocks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt

from autopar.cost.computation.blocks import BlockSeconds

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Row:
    """Blocks divided in one way for one microbatch size, on the fastest device.

    Attributes:
        seconds: Per block, without ZeRO-2 and ZeRO-3 collectives.
        accumulate: Seconds per block of adding to earlier gradients, for many microbatches.
        parameters: Elements per block on a rank, experts left out.
        untied_parameters: The same without parameters that several blocks read.
        message_bytes: Fewest bytes that pass a boundary between blocks, either way.
        kept: Bytes per microbatch of every block by recompute level.
    """

    seconds: BlockSeconds
    accumulate: Array
    parameters: Array
    untied_parameters: Array
    message_bytes: float
    kept: tuple[Array, Array, Array]

    @cached_property
    def again(self) -> tuple[Array, Array]:
        """Kept bytes that recompute can save and the least seconds for them, both rising.

        In between the line is a lower bound (fractional knapsack).
        """
        return _cheapest(self.seconds, self.kept)

    @cached_property
    def kept_sums(self) -> tuple[float, ...]:
        """Bytes per microbatch of all blocks by recompute level."""
        return tuple(float(level.sum()) for level in self.kept)

    @cached_property
    def work(self) -> Array:
        """Forward and backward of every block."""
        return np.asarray(self.seconds.forward + self.seconds.backward)


def _cheapest(seconds: BlockSeconds, kept: Sequence[Array]) -> tuple[Array, Array]:
    """Bytes saved and least seconds, cheapest blocks and levels first."""
    saved_some = kept[0] - kept[1]
    saved_more = kept[1] - kept[2]
    # A step to full through selective may cost less per byte than selective itself: then only
    # the whole step counts.
    cost_some, cost_more = seconds.selective, seconds.full - seconds.selective
    whole = cost_some * np.maximum(saved_more, 0) > cost_more * np.maximum(saved_some, 0)
    whole |= (saved_some <= 0) | (saved_more <= 0) | (cost_more < 0)
    saved = np.concatenate([np.where(whole, 0, saved_some), np.where(whole, 0, saved_more)])
    cost = np.concatenate([cost_some, cost_more])
    saved = np.concatenate([saved, np.where(whole, kept[0] - kept[2], 0)])
    least = np.minimum(seconds.selective, seconds.full)
    cost = np.concatenate([cost, np.where(saved_some > 0, least, seconds.full)])
    there = saved > 0
    saved, cost = saved[there], np.maximum(cost[there], 0.0)
    order = np.argsort(cost / saved)
    zero = np.zeros(1)
    return (
        np.concatenate([zero, np.cumsum(saved[order])]),
        np.concatenate([zero, np.cumsum(cost[order])]),
    )


def slowest_of(options: Sequence[tuple[BlockSeconds, Array]]) -> tuple[BlockSeconds, Array]:
    """The seconds of the kind of device that is slowest everywhere, which a stage then takes.

    Where none is, the least of every part.
    """
    if len(options) == 1:
        return options[0]
    names = ("forward", "backward", "selective", "full")
    for seconds, adding in options:
        slower = all(
            (getattr(seconds, name) >= getattr(other, name)).all()
            for other, _ in options
            for name in names
        )
        if slower and all((adding >= others).all() for _, others in options):
            return seconds, adding
    return _fastest([seconds for seconds, _ in options]), np.min([a for _, a in options], axis=0)


def _fastest(options: Sequence[BlockSeconds]) -> BlockSeconds:
    """Least seconds of every part."""
    return BlockSeconds(
        **{
            name: np.min([getattr(option, name) for option in options], axis=0)
            for name in BlockSeconds.__slots__
        }
    )


def least_row(rows: Sequence[Row]) -> Row:
    """Least seconds of every part; what is held does not depend on devices."""
    return replace(
        rows[0],
        seconds=_fastest([row.seconds for row in rows]),
        accumulate=np.min([row.accumulate for row in rows], axis=0),
    )


def fullest_rank(work: Array, ranks: int) -> Array:
    """Least work of the fullest rank, along the last axis.

    At least the average; and of the ``j ranks + 1`` largest blocks some rank holds ``j + 1``.
    """
    return fullest_of(-np.sort(-work, axis=-1), work.sum(axis=-1), ranks)


def fullest_of(falling: Array, total: Array, ranks: int) -> Array:
    """:func:`fullest_rank` of work that is sorted, largest block first, and its sum."""
    picked = falling[..., ::ranks]
    counts = np.arange(1, picked.shape[-1] + 1)
    return np.asarray(np.maximum((picked * counts).max(axis=-1), total / ranks))
