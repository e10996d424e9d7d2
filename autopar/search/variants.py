"""The choices of a point that do not divide work: schedule, recompute, sharding, offload, sync."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from autopar.schedules import SCHEDULES
from autopar.search.spec import Spec

CHUNKS = (2, 3, 4)
"""Stages per rank that interleaved schedules try."""
V_CHUNKS = (2,)
"""Stages per rank of schedules placed in a V."""
RECOMPUTE = ("none", "selective", "full", "mixed")
ZERO = (1, 2, 3)


@dataclass(frozen=True, slots=True, kw_only=True)
class Choices:
    """Values that the space tries on each of these axes.

    Attributes:
        schedules: Names of pipeline schedules.
        recompute: Recompute modes.
        zero: Sharding levels where ranks share.
        offload: ``off`` and ``on``.
        sync: Sync modes.
        blocks: Blocks of the model, the limit of stages.
    """

    schedules: tuple[str, ...]
    recompute: tuple[str, ...]
    zero: tuple[int, ...]
    offload: tuple[str, ...]
    sync: tuple[str, ...]
    blocks: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One combination."""

    schedule: str
    chunks: int
    recompute: str
    zero: int
    offload: str
    sync: str

    def matches(self, spec: Spec) -> bool:
        """True when each axis of the specification that a variant has agrees."""
        return all(getattr(self, axis) == value for axis, value in spec.items())


AXES = ("schedule", "chunks", "recompute", "zero", "offload", "sync")


@dataclass(frozen=True, kw_only=True)
class VariantSet:
    """What is tried for groups with the same ``pp``, microbatch count and sharding.

    Attributes:
        variants: In a fixed order.
        rejected: Reason -> count of the combinations that cannot be.
        size: All combinations.
    """

    variants: tuple[Variant, ...]
    rejected: Counter[str]
    size: int

    @cached_property
    def zero(self) -> npt.NDArray[np.intp]:
        """Sharding level of each variant."""
        return np.array([v.zero for v in self.variants], dtype=np.intp)

    @cached_property
    def offload(self) -> npt.NDArray[np.bool_]:
        """True where states live in host memory."""
        return np.array([v.offload == "on" for v in self.variants], dtype=bool)

    @cached_property
    def recompute(self) -> npt.NDArray[np.intp]:
        """Index into :data:`RECOMPUTE`."""
        return np.array([RECOMPUTE.index(v.recompute) for v in self.variants], dtype=np.intp)

    @cached_property
    def schedules(self) -> tuple[tuple[tuple[str, int], npt.NDArray[np.intp]], ...]:
        """``(schedule, chunks)`` and the variants that have it."""
        names = [(v.schedule, v.chunks) for v in self.variants]
        return tuple(
            (name, np.array([i for i, other in enumerate(names) if other == name], dtype=np.intp))
            for name in dict.fromkeys(names)
        )


def chunk_options(schedule: str) -> tuple[int, ...]:
    """Stages per rank that are tried for a schedule."""
    found = SCHEDULES.load(schedule)
    if not found.interleaves:
        return (1,)
    return V_CHUNKS if found.rank_of(2, 2) == 1 else CHUNKS


def make_variants(
    choices: Choices, pp: int, microbatches: int, shared: bool, wanted: Spec, forbidden: list[Spec]
) -> VariantSet:
    """All combinations for a pipeline depth, and which of them cannot be.

    Args:
        choices: Values of each axis.
        pp: Pipeline ranks.
        microbatches: Per replica and step.
        shared: True when ``dp_shard`` is 2 or more.
        wanted: Axis values every variant must have.
        forbidden: Specifications no variant may meet.
    """
    rejected: Counter[str] = Counter()
    kept: list[Variant] = []
    names = [s for s in choices.schedules if (s == "none") == (pp == 1)]
    rest = [
        (recompute, zero, offload, sync)
        for recompute in choices.recompute
        for zero in (choices.zero if shared else (0,))
        for offload in choices.offload
        for sync in choices.sync
    ]
    size = 0
    for name in names:
        for chunks in chunk_options(name):
            size += len(rest)
            reason = _impossible(name, pp, chunks, microbatches, choices.blocks)
            if reason is not None:
                rejected[reason] += len(rest)
                continue
            for recompute, zero, offload, sync in rest:
                variant = Variant(
                    schedule=name,
                    chunks=chunks,
                    recompute=recompute,
                    zero=zero,
                    offload=offload,
                    sync=sync,
                )
                reason = _unwanted(variant, wanted, forbidden)
                if reason is None:
                    kept.append(variant)
                else:
                    rejected[reason] += 1
    return VariantSet(variants=tuple(kept), rejected=rejected, size=size)


def _impossible(name: str, pp: int, chunks: int, microbatches: int, blocks: int) -> str | None:
    if pp * chunks > blocks:
        return "more stages than blocks"
    if SCHEDULES.load(name).check(pp, pp * chunks, microbatches) is not None:
        return "schedule does not fit the microbatches"
    return None


def _unwanted(variant: Variant, wanted: Spec, forbidden: list[Spec]) -> str | None:
    if variant.recompute == "mixed" and variant.chunks > 1:
        return "recompute is mixed where a rank holds one stage"
    if not variant.matches(wanted):
        return "not what --fix asks for"
    if any(variant.matches(spec) for spec in forbidden):
        return "ruled out by --forbid"
    return None
