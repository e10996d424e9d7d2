"""The choices of a point that do not divide work: schedule, recompute, sharding, offload, sync."""

from __future__ import annotations

import copy
from collections import Counter
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from autopar.schedules import SCHEDULES, AbstractSchedule
from autopar.search.space.spec import Spec
from autopar.sync import parse_sync

Indices = npt.NDArray[np.intp]
Mask = npt.NDArray[np.bool_]
CHUNKS = (2, 3, 4)
"""Stages per rank that interleaved schedules try."""
V_CHUNKS = (2,)
"""Stages per rank of schedules placed in a V."""
RECOMPUTE = ("none", "selective", "full", "mixed")
ZERO = (1, 2, 3)
TAIL_CODES = 4 * (1 + max(ZERO))
"""Number of different :attr:`VariantTable.tail_codes`."""
PLAIN = "all_reduce"
"""The sync mode that averages whole gradients in every step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Choices:
    """Values that the space tries on each of these axes.

    Attributes:
        schedules: Names of pipeline schedules.
        recompute: Recompute modes.
        zero: Sharding levels where ranks share.
        offload: ``off`` and ``on``.
        sync: Sync modes.
        least_steps: Lower bound of the steps multiplier of each sync mode.
        blocks: Blocks of the model, the limit of stages.
    """

    schedules: tuple[str, ...]
    recompute: tuple[str, ...]
    zero: tuple[int, ...]
    offload: tuple[str, ...]
    sync: tuple[str, ...]
    least_steps: tuple[float, ...]
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


_OF_ALL_DEPTHS = (
    "plain",
    "tail_codes",
    "least_multiplier",
    "schedules",
    "wider",
    "_sharing",
    "_loaded",
    "_refused",
)
"""Facts of a table that do not depend on the pipeline depth."""


class VariantTable:
    """All combinations for one pipeline depth, with their axes as arrays.

    Args:
        choices: Values of each axis.
        pp: Pipeline ranks.
    """

    def __init__(self, choices: Choices, pp: int) -> None:
        self.choices = choices
        self.pp = pp
        names = [s for s in choices.schedules if (s == "none") == (pp == 1)]
        self.variants = tuple(
            Variant(
                schedule=name,
                chunks=chunks,
                recompute=recompute,
                zero=zero,
                offload=offload,
                sync=sync,
            )
            for name in names
            for chunks in chunk_options(name)
            for recompute in choices.recompute
            for zero in (0, *choices.zero)
            for offload in choices.offload
            for sync in choices.sync
        )
        self.zero = np.array([v.zero for v in self.variants], dtype=np.intp)
        self.offload = np.array([v.offload == "on" for v in self.variants], dtype=bool)
        self.recompute = np.array(
            [RECOMPUTE.index(v.recompute) for v in self.variants], dtype=np.intp
        )

    def at(self, pp: int) -> VariantTable:
        """The same combinations for another depth, of two or more ranks like this one."""
        assert (pp > 1) == (self.pp > 1)  # else there are other schedules
        for name in _OF_ALL_DEPTHS:
            getattr(self, name)
        other = copy.copy(self)  # with what is known by now
        other.pp = pp
        return other

    @cached_property
    def plain(self) -> Mask:
        """True where whole gradients are averaged in every step."""
        return np.array([v.sync == PLAIN for v in self.variants], dtype=bool)

    @cached_property
    def tail_codes(self) -> Indices:
        """Number of what decides what follows the last backward: sharding, offload, plain."""
        return np.asarray(4 * self.zero + 2 * self.offload + self.plain)

    @staticmethod
    def of_tail_codes(codes: Indices) -> tuple[Indices, Mask, Mask]:
        """Sharding level, offload and plain of some of :attr:`tail_codes`."""
        return codes // 4, codes // 2 % 2 == 1, codes % 2 == 1

    @cached_property
    def least_multiplier(self) -> npt.NDArray[np.float64]:
        """Lower bound of the steps to the same loss over those of exact modes."""
        known = dict(zip(self.choices.sync, self.choices.least_steps, strict=True))
        return np.array([known[v.sync] for v in self.variants])

    @cached_property
    def schedules(self) -> tuple[tuple[tuple[str, int], Indices], ...]:
        """``(schedule, chunks)`` and the variants that have it."""
        names = [(v.schedule, v.chunks) for v in self.variants]
        return tuple(
            (name, np.array([i for i, other in enumerate(names) if other == name], dtype=np.intp))
            for name in dict.fromkeys(names)
        )

    def sharing(self, shared: bool) -> _Sharing:
        """The combinations of ranks that share states, or of those that do not."""
        if shared not in self._sharing:
            here = (self.zero > 0) == shared
            schedules = [(name, every[here[every]]) for name, every in self.schedules]
            self._sharing[shared] = _Sharing(
                here=here,
                size=int(here.sum()),
                schedules=tuple((name, mine) for name, mine in schedules if len(mine)),
            )
        return self._sharing[shared]

    @cached_property
    def _sharing(self) -> dict[bool, _Sharing]:
        return {}

    def schedule(self, name: str) -> AbstractSchedule:
        """A registered schedule."""
        if name not in self._loaded:
            self._loaded[name] = SCHEDULES.load(name)
        return self._loaded[name]

    def refused(self, microbatches: int) -> tuple[tuple[tuple[str, int], str], ...]:
        """``(schedule, chunks)`` that cannot run with some microbatches, and why."""
        key = (self.pp, microbatches)
        if key not in self._refused:
            whys = [(name, self._why_not(*name, microbatches)) for name, _ in self.schedules]
            self._refused[key] = tuple((name, why) for name, why in whys if why is not None)
        return self._refused[key]

    def _why_not(self, name: str, chunks: int, microbatches: int) -> str | None:
        stages = self.pp * chunks
        if stages > self.choices.blocks:
            return "more stages than blocks"
        if self.schedule(name).check(self.pp, stages, microbatches) is not None:
            return "schedule does not fit the microbatches"
        return None

    @cached_property
    def _refused(self) -> dict[tuple[int, int], tuple[tuple[tuple[str, int], str], ...]]:
        return {}

    @cached_property
    def _loaded(self) -> dict[str, AbstractSchedule]:
        return {}

    def left_out(
        self, shared: bool, wanted: Spec, forbidden: list[Spec], unfit: frozenset[str]
    ) -> tuple[Mask, tuple[Counter[str], ...]]:
        """What is left whatever the microbatches; reason -> count of the rest by schedule.

        Schedules are those of :meth:`sharing`.
        """
        key = repr((shared, wanted, forbidden, sorted(unfit)))
        if key not in self._left_out:
            mine = self.sharing(shared)
            codes, names = self._codes(wanted, forbidden, unfit)
            counts = tuple(
                Counter(names[code] for code in codes[columns].tolist() if code >= 0)
                for _, columns in mine.schedules
            )
            self._left_out[key] = (mine.here & (codes < 0), counts)
        return self._left_out[key]

    @cached_property
    def _left_out(self) -> dict[str, tuple[Mask, tuple[Counter[str], ...]]]:
        return {}

    def _codes(
        self, wanted: Spec, forbidden: list[Spec], unfit: frozenset[str]
    ) -> tuple[Indices, tuple[str, ...]]:
        """Why each combination is left out: a reason's number, or -1."""
        key = repr((wanted, forbidden, sorted(unfit)))
        if key not in self._unwanted:
            numbers: dict[str, int] = {}
            codes = []
            for variant in self.variants:
                reason = _unwanted(variant, wanted, forbidden)
                if reason is None and variant.offload == "on" and variant.sync in self._on_servers:
                    reason = "parameter servers hold the optimizer state"
                if reason is None and variant.sync in unfit:
                    reason = "sync mode does not run on the mesh"
                codes.append(-1 if reason is None else numbers.setdefault(reason, len(numbers)))
            self._unwanted[key] = (np.array(codes, dtype=np.intp), tuple(numbers))
        return self._unwanted[key]

    @cached_property
    def _on_servers(self) -> frozenset[str]:
        """Sync modes whose optimizer steps on parameter servers."""
        return frozenset(s for s in self.choices.sync if parse_sync(s).mode.steps_on_servers)

    @cached_property
    def _unwanted(self) -> dict[str, tuple[Indices, tuple[str, ...]]]:
        return {}

    @cached_property
    def wider(self) -> Indices:
        """Variant whose optimum is at least as good as this one's wherever this one fits; or -1.

        Offload costs time: it is worth looking at only where states on the device do not fit. With
        one stage per rank, levels per block include every uniform level.
        """
        axes = [
            (v.schedule, v.chunks, v.recompute, v.zero, v.offload, v.sync) for v in self.variants
        ]
        index = {values: i for i, values in enumerate(axes)}
        found = []
        for schedule, chunks, recompute, zero, offload, sync in axes:
            mixed = chunks == 1 and recompute != "mixed"
            if not mixed and offload == "off":
                found.append(-1)
                continue
            best = "mixed" if mixed else recompute
            found.append(index.get((schedule, chunks, best, zero, "off", sync), -1))
        return np.array(found, dtype=np.intp)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sharing:
    """Combinations with or without shared states.

    Attributes:
        here: Which they are.
        size: Their number.
        schedules: ``(schedule, chunks)`` and those of them that have it.
    """

    here: Mask
    size: int
    schedules: tuple[tuple[tuple[str, int], Indices], ...]


@dataclass(frozen=True, kw_only=True)
class VariantSet:
    """What is tried for groups with the same ``pp``, sharing and schedules that can run.

    Attributes:
        table: All combinations for the pipeline depth.
        valid: Which of them exist here.
        rejected: Reason -> count of the combinations that cannot be.
        size: Combinations, rejected ones included.
    """

    table: VariantTable
    valid: Mask
    rejected: Counter[str]
    size: int

    @cached_property
    def variants(self) -> tuple[Variant, ...]:
        """Those that exist, in a fixed order."""
        return tuple(self.table.variants[i] for i in np.flatnonzero(self.valid))

    @cached_property
    def count(self) -> int:
        """Number of those that exist."""
        return int(self.valid.sum())

    @cached_property
    def most_shared(self) -> int:
        """Highest sharing level among them."""
        return int(self.table.zero[self.valid].max()) if self.count else 0

    @cached_property
    def may_offload(self) -> tuple[bool, ...]:
        """Values of offload among them."""
        return tuple(sorted(set(self.table.offload[self.valid].tolist())))


def chunk_options(schedule: str) -> tuple[int, ...]:
    """Stages per rank that are tried for a schedule."""
    found = SCHEDULES.load(schedule)
    if not found.interleaves:
        return (1,)
    return V_CHUNKS if found.rank_of(2, 2) == 1 else CHUNKS


def make_variants(
    table: VariantTable,
    microbatches: int,
    shared: bool,
    wanted: Spec,
    forbidden: list[Spec],
    unfit: frozenset[str] = frozenset(),
) -> VariantSet:
    """Which combinations exist for a microbatch count.

    Args:
        table: All combinations for the pipeline depth.
        microbatches: Per replica and step.
        shared: True when ``dp_shard`` is 2 or more.
        wanted: Axis values every variant must have.
        forbidden: Specifications no variant may meet.
        unfit: Sync modes that do not run on the mesh.
    """
    mine = table.sharing(shared)
    left, counts = table.left_out(shared, wanted, forbidden, unfit)
    rejected: Counter[str] = Counter()
    valid = left.copy()
    refused = dict(table.refused(microbatches))
    for (name, columns), others in zip(mine.schedules, counts, strict=True):
        reason = refused.get(name)
        if reason is not None:
            valid[columns] = False
            rejected[reason] += len(columns)
            continue
        for why, count in others.items():
            rejected[why] += count
    return VariantSet(table=table, valid=valid, rejected=rejected, size=mine.size)


def _unwanted(variant: Variant, wanted: Spec, forbidden: list[Spec]) -> str | None:
    if variant.recompute == "mixed" and variant.chunks > 1:
        return "recompute is mixed where a rank holds one stage"
    if variant.sync != PLAIN and variant.zero > 0 and not parse_sync(variant.sync).shardable:
        return "sync mode keeps whole states"
    if not variant.matches(wanted):
        return "not what --fix asks for"
    if any(variant.matches(spec) for spec in forbidden):
        return "ruled out by --forbid"
    return None
