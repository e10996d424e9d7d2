"""Parts of amounts, and what the parts of a block's ops follow from."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from autopar.graph import Amount, Op
from autopar.strategies.matmul import Attention, Matmul
from autopar.strategies.tensor import Collective


class Place(NamedTuple):
    """How an op stands in a split; what a rank has of it follows from this alone.

    Attributes:
        divided: Works on a part of the columns.
        row: Is a product whose partial results are summed.
        whole: Is computed whole by context ranks.
    """

    divided: bool
    row: bool
    whole: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class PlaceSums:
    """Sums over the ops of a block at one place.

    Attributes:
        forward_bytes: Read and written by ops without FLOPs.
        backward_bytes: By their gradients.
        autocast_forward_bytes: Under autocast, casts included.
        autocast_backward_bytes: By gradients, the same.
        saved_bytes: Kept for backward.
        product_bytes: What selective recompute keeps: results of ops with FLOPs.
        loss_bytes: Kept by losses over classes.
        flop: Forward, at the profiled batch.
    """

    forward_bytes: Amount
    backward_bytes: Amount
    autocast_forward_bytes: Amount
    autocast_backward_bytes: Amount
    saved_bytes: Amount
    product_bytes: Amount
    loss_bytes: Amount
    flop: float


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockOps:
    """The ops of a block, looked at once for all splits.

    Attributes:
        ops: In order.
        places: Of each op.
        sums: By place.
        collectives: ``(axis, sequence parallel)`` -> ops and what they send.
        matmuls: Position and product.
        attention: Position and call.
        weights: Parameters that products read.
        casts: Casts of values forward under autocast.
    """

    ops: tuple[Op, ...]
    places: tuple[Place, ...]
    sums: dict[Place, PlaceSums]
    collectives: dict[tuple[str, bool], tuple[tuple[Op, Collective], ...]]
    matmuls: tuple[tuple[int, Matmul], ...]
    attention: tuple[tuple[int, Attention], ...]
    weights: tuple[str, ...]
    casts: int


def scaled(amount: Amount, share: float) -> Amount:
    """Per-sample part divided; what does not depend on samples is there on each rank."""
    return Amount(amount.fixed, amount.per_sample * share) if share != 1.0 else amount


def weighed(parts: Iterable[tuple[Amount, float]]) -> Amount:
    """Sum of amounts of which a rank has a part each."""
    fixed = per_sample = 0.0
    for amount, share in parts:
        fixed += amount.fixed
        per_sample += amount.per_sample * share
    return Amount(fixed, per_sample)


def larger(a: Amount, b: Amount) -> Amount:
    """The larger of each term."""
    return Amount(max(a.fixed, b.fixed), max(a.per_sample, b.per_sample))


def smaller(a: Amount, b: Amount) -> Amount:
    """The smaller of each term."""
    return Amount(min(a.fixed, b.fixed), min(a.per_sample, b.per_sample))
