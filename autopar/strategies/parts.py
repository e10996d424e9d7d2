"""Parts of amounts, and what the parts of a block's ops follow from."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from autopar.graph import Amount, Op
from autopar.strategies.matmul import Attention, Matmul
from autopar.strategies.tensor import Collective


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockOps:
    """The ops of a block, looked at once for all splits.

    Attributes:
        ops: In order.
        places: Of each op: works on a part of the columns, is computed whole by context ranks.
        flops: Forward FLOPs of each op at the profiled batch.
        collectives: ``(axis, sequence parallel)`` -> ops and what they send.
        streams: Position of each op without FLOPs.
        products: Position of each op with FLOPs, and what selective recompute keeps of it.
        matmuls: Position and product.
        attention: Position and call.
        losses: Position of each loss over classes, and what it keeps.
    """

    ops: tuple[Op, ...]
    places: tuple[tuple[bool, bool], ...]
    flops: tuple[float, ...]
    collectives: dict[tuple[str, bool], tuple[tuple[Op, Collective], ...]]
    streams: tuple[int, ...]
    products: tuple[tuple[int, Amount], ...]
    matmuls: tuple[tuple[int, Matmul], ...]
    attention: tuple[tuple[int, Attention], ...]
    losses: tuple[tuple[int, Amount], ...]


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
