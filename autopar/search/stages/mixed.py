"""``recompute=mixed``: every block its own recompute level, the least time the memory allows.

A mixed plan gives each stage the levels with the least recompute time that fit on its rank,
solved by :mod:`.mixing`; ties go to the first blocks. That is the best choice for
the step where a rank holds one stage of a pipeline. Where one stage holds the whole model and
gradient reduction hides behind backward, other levels may hide a little more of it: there the
uniform levels are tried too, so that a mixed plan is never worse than a uniform one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt

from autopar.calibration import peak
from autopar.cost import memory
from autopar.cost.bounds.step import Band, Bounds
from autopar.cost.layout import Cuts, Layout
from autopar.cost.tables import Table
from autopar.cost.work import FULL, NONE, SELECTIVE, Levels, Vector
from autopar.search.stages.goal import Goal
from autopar.search.stages.knapsack import Option
from autopar.search.stages.mixing import Choice, least_bytes, solve_stage
from autopar.search.stages.mixing_bounds import RunBounds

LEVELS = (NONE, SELECTIVE, FULL)
"""Level of each option of a block."""
_EQUAL = 1e-12
"""Relative difference below which two sums count as equal."""


@dataclass(frozen=True, kw_only=True)
class Known:
    """What layouts with equal blocks share, filled as it is needed.

    Attributes:
        runs: Bounds of runs of blocks, by split, microbatch size, devices and surroundings.
        bytes: Bytes at each level, by split and microbatch size.
    """

    runs: dict[object, RunBounds] = field(default_factory=dict)
    bytes: dict[object, tuple[memory.RunBytes, ...]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class StageMixer:
    """Recompute levels of the blocks of a stage that is alone on its rank.

    Attributes:
        layout: Without recompute; one stage per rank.
        limits_bytes: Per pipeline coordinate, for the central estimate.
        known: What other layouts may share.
    """

    layout: Layout
    limits_bytes: tuple[float, ...]
    known: Known = field(default_factory=Known)

    def copies(self, rank: int) -> float:
        """Microbatches in flight on a pipeline coordinate."""
        return float(max(counts[0] for counts in self.layout.live(rank)))

    @cached_property
    def _bytes(self) -> tuple[memory.RunBytes, ...]:
        """Bytes of activations at each level; no others are asked for here."""
        key, count = (self.layout.split, self.layout.microbatch_size), self.layout.tables.count
        if key not in self.known.bytes:
            self.known.bytes[key] = tuple(
                memory.RunBytes(layout=replace(self.layout, levels=(level,) * count))
                for level in LEVELS
            )
        return self.known.bytes[key]

    def _seconds(self, rank: int) -> tuple[Vector, ...]:
        """Recompute seconds of every block at each level, one microbatch."""
        layout = self.layout
        blocks = max(
            (
                layout.model.block_seconds(
                    layout.split, layout.microbatch_size, device, busy, layout.around(rank)
                )
                for device, busy in layout.model.kinds(layout.placement, layout.groups[rank])
            ),
            key=lambda found: float((found.forward + found.backward).sum()),
        )
        return np.zeros_like(blocks.full), blocks.selective, blocks.full

    def options(self, rank: int) -> Sequence[tuple[Option, ...]]:
        """Options of every block, one per level; seconds are those of one microbatch."""
        return self._bounds_of(rank).options

    @cached_property
    def _own(self) -> dict[object, RunBounds]:
        return {}

    def _bounds_of(self, rank: int) -> RunBounds:
        kind = self.layout.group_kind(rank)
        if kind not in self._own:
            layout = self.layout
            devices = layout.model.kinds(layout.placement, layout.groups[rank])
            names = tuple((device.name, busy) for device, busy in devices)
            key = (layout.split, layout.microbatch_size, names, layout.around(rank))
            if key not in self.known.runs:
                self.known.runs[key] = self._make_bounds(rank)
            self._own[kind] = self.known.runs[key]
        return self._own[kind]

    def _make_bounds(self, rank: int) -> RunBounds:
        columns = zip(
            zip(*(x.tolist() for x in self._seconds(rank)), strict=True),
            zip(*(b.block_kept.tolist() for b in self._bytes), strict=True),
            zip(*(b.block_transient.tolist() for b in self._bytes), strict=True),
            strict=True,
        )
        alike: dict[object, tuple[Option, ...]] = {}
        for block in (every := list(columns)):
            if block not in alike:
                alike[block] = tuple(
                    Option(seconds=s, kept_bytes=b, peak_bytes=p)
                    for s, b, p in zip(*block, strict=True)
                )
        return RunBounds([alike[block] for block in every])

    @cached_property
    def _whole(self) -> memory.SpanMemory:
        return memory.SpanMemory(layout=self.layout, take=lambda table: table)

    def _context(self, rank: int) -> float:
        return memory.framework_bytes(self.layout, rank)

    def _passing(self, rank: int) -> Table:
        """``[i, j]``: bytes of forward and backward that levels do not decide."""
        plain = self._bytes[NONE]
        return np.asarray(self.copies(rank) * plain.passing + plain.loss)

    def _room_of(self, rank: int) -> Table:
        """``[i, j]``: what is left on a rank with blocks ``[i, j)`` for what levels decide."""
        c = self.layout.model.memory
        served = self.limits_bytes[rank] - self._context(rank)
        rest = served / c.allocator_margin - self._whole.constant
        return peak.room_beside_update(c, rest, self._whole.update) - self._passing(rank)

    @cached_property
    def _rooms(self) -> dict[object, Table]:
        return {}

    def _room(self, rank: int) -> Table:
        key = (self.layout.group_kind(rank), self.copies(rank))
        if key not in self._rooms:
            self._rooms[key] = self._room_of(rank)
        return self._rooms[key]

    def least_needs(self, rank: int) -> Table:
        """``[i, j]``: least bytes of a rank with blocks ``[i, j)``, whatever the levels."""
        mixed = self._bounds_of(rank).least_needs(self.copies(rank)) + self._passing(rank)
        return self._whole.with_freed(np.minimum(mixed, self._full(rank)), self._context(rank))

    def _full(self, rank: int) -> Table:
        """``[i, j]``: bytes freed in a step where every block is computed again in full.

        What enters a stage is then counted with the block that reads it and not once more.
        """
        full = self._bytes[FULL]
        return np.asarray(self.copies(rank) * full.kept + full.transient + full.loss)

    def least_seconds(
        self, rank: int, starts: npt.NDArray[np.intp], stops: npt.NDArray[np.intp]
    ) -> Table:
        """Lower bounds of the recompute seconds of runs; infinite where nothing fits."""
        room = self._room(rank)[starts, stops]
        bounds = self._bounds_of(rank)
        mixed, _ = bounds.at(starts, stops, room, self.copies(rank))
        sums = np.cumsum([0.0, *(block[FULL].seconds for block in bounds.options)])
        needed = self._whole.with_freed(self._full(rank), self._context(rank))
        fits = needed[starts, stops] <= self.limits_bytes[rank] * (1 + _EQUAL)
        full = np.where(fits, (sums[stops] - sums[starts]) * (1 - _EQUAL), np.inf)
        return np.minimum(mixed, full)

    @cached_property
    def _solved(self) -> dict[object, Choice | None]:
        return {}

    def solve(self, rank: int, start: int, stop: int) -> Choice | None:
        """Levels of blocks ``[start, stop)`` with the least recompute time, if any fit."""
        copies = self.copies(rank)
        key = (self.layout.group_kind(rank), copies, start, stop)
        if key not in self._solved:
            room = float(self._room(rank)[start, stop])
            self._solved[key] = solve_stage(self.options(rank)[start:stop], room, copies)
        return self._solved[key]

    def smallest(self, rank: int, start: int, stop: int) -> Choice:
        """Levels of blocks ``[start, stop)`` with the least memory."""
        return least_bytes(self.options(rank)[start:stop], self.copies(rank))


@dataclass(frozen=True, kw_only=True)
class MixedBounds(Bounds):
    """Bounds that count the least recompute time of each stage.

    Attributes:
        mixer: Solves the stages.
    """

    mixer: StageMixer

    @cached_property
    def _least_again(self) -> dict[object, Table]:
        return {}

    def least_again(self, rank: int) -> Table:
        """Least recompute seconds of one microbatch by run of the band; inf where none fits."""
        key = (self.layout.group_kind(rank), self.mixer.copies(rank))
        if key not in self._least_again:
            self._least_again[key] = self.mixer.least_seconds(rank, *self.band.runs)
        return self._least_again[key]

    def stage_table(self, stage: int, extra: Table | None = None) -> Table:
        """Least step time of any plan whose stage ``stage`` is a run of the band."""
        again = self.least_again(self.layout.rank_of(stage))
        fits = np.isfinite(again)
        more = np.where(fits, again, 0.0)
        table = super().stage_table(stage, more if extra is None else more + extra)
        return np.where(fits, table, np.inf)

    def span(self, stage: int, start: int, stop: int) -> tuple[float, float]:
        """Forward and backward seconds of a stage, the least recompute included."""
        forward, backward = super().span(stage, start, stop)
        again = self.least_again(self.layout.rank_of(stage))[start, stop - start - 1]
        return forward, backward + float(again)


@dataclass(frozen=True, kw_only=True)
class MixedGoal(Goal):
    """Objective of the best recompute levels for given stage boundaries.

    ``layout`` has no recompute and one stage per rank.

    Attributes:
        known: See :class:`StageMixer`.
    """

    known: Known = field(default_factory=Known)

    @property
    def open_levels(self) -> bool:
        """True: recompute levels follow from the boundaries."""
        return True

    @cached_property
    def mixer(self) -> StageMixer:
        """Solves the stages."""
        ranks = range(self.layout.mesh.pp)
        high = self.layout.model.memory.high_factor
        return StageMixer(
            layout=self.layout,
            limits_bytes=tuple(self.limit(rank) / high for rank in ranks),
            known=self.known,
        )

    @cached_property
    def band(self) -> Band:
        """Stage lengths that leave a block to every other stage and may fit in memory.

        A single stage holds all blocks, whether or not they fit.
        """
        layout, mixer = self.layout, self.mixer
        n = layout.tables.count
        if layout.stages == 1:
            return Band(blocks=n, width=n, shortest=n)
        easiest: dict[object, int] = {}
        for rank in range(layout.mesh.pp):
            kind = layout.group_kind(rank)
            if kind not in easiest or mixer.copies(rank) < mixer.copies(easiest[kind]):
                easiest[kind] = rank
        ends = np.arange(n + 1)
        lengths = ends[None, :] - ends[:, None]
        fits = np.zeros(lengths.shape, dtype=bool)
        for rank in easiest.values():
            fits |= (lengths > 0) & (mixer.least_needs(rank) <= mixer.limits_bytes[rank])
        widest = int(lengths[fits].max()) if fits.any() else 1
        return Band(blocks=n, width=min(n - layout.stages + 1, widest))

    @cached_property
    def bounds(self) -> MixedBounds:
        """Step-time bounds of the layout."""
        return MixedBounds(layout=self.layout, band=self.band, mixer=self.mixer)

    def stage_table(self, stage: int) -> Table:
        """Lower bound of the objective by run of the band; inf where memory runs out."""
        if self.objective == "memory":
            rank = self.layout.rank_of(stage)
            needed = self.band.take(self.mixer.least_needs(rank))
            fits = self.band.inside & (needed <= self.mixer.limits_bytes[rank])
            return np.where(fits, needed, np.inf)
        slope, floor = self.slope_and_floor
        return slope * self.bounds.stage_table(stage) + floor

    def levels(self, cuts: Cuts) -> Levels | None:
        """Recompute level of every block, ``None`` where a stage does not fit."""
        return self._best(cuts)[0]

    @cached_property
    def _found(self) -> dict[Cuts, tuple[Levels | None, float]]:
        return {}

    def _best(self, cuts: Cuts) -> tuple[Levels | None, float]:
        """The best levels for some boundaries, and their objective."""
        if cuts not in self._found:
            best: tuple[Levels | None, float] = (None, float("inf"))
            for levels in self._candidates(cuts):
                goal = self._at(levels)
                value = goal.value(cuts) if self._computing(goal) < best[1] else best[1]
                if value < best[1]:
                    best = (levels, value)
            self._found[cuts] = best
        return self._found[cuts]

    def _computing(self, goal: Goal) -> float:
        """Objective at least of some levels, as no step is shorter than its computing alone."""
        if self.layout.stages > 1:
            return 0.0
        span, m = goal.layout.spans[0], self.layout.microbatches
        return goal.from_time(m * span.total * (1 - _EQUAL))

    def _candidates(self, cuts: Cuts) -> list[Levels]:
        """The solved levels, and uniform ones where those could be better."""
        mixed = self._smallest(cuts) if self.objective == "memory" else self._fastest(cuts)
        uniform = [(level,) * self.layout.tables.count for level in LEVELS]
        if mixed is None:
            return uniform[FULL:]
        if self.layout.stages == 1:
            return list(dict.fromkeys([mixed, *uniform]))
        return [mixed, *uniform[FULL:]] if self.objective == "memory" else [mixed]

    def _fastest(self, cuts: Cuts) -> Levels | None:
        found: list[int] = []
        for stage in range(self.layout.stages):
            rank = self.layout.rank_of(stage)
            choice = self.mixer.solve(rank, cuts[stage], cuts[stage + 1])
            if choice is None:
                return None
            found += [LEVELS[pick] for pick in choice.picks]
        return tuple(found)

    def _smallest(self, cuts: Cuts) -> Levels:
        found: list[int] = []
        for stage in range(self.layout.stages):
            rank = self.layout.rank_of(stage)
            picks = self.mixer.smallest(rank, cuts[stage], cuts[stage + 1]).picks
            found += [LEVELS[pick] for pick in picks]
        return tuple(found)

    def _at(self, levels: Levels) -> Goal:
        return Goal(
            layout=replace(self.layout, levels=levels),
            objective=self.objective,
            max_memory_bytes=self.max_memory_bytes,
        )

    def feasible(self, cuts: Cuts) -> bool:
        """True when some levels fit on every rank."""
        return self._best(cuts)[0] is not None

    def tightest(self, cuts: Cuts) -> tuple[int, float]:
        """Pipeline rank with the largest excess with the smallest levels, and what it needs."""
        return self._at(self._smallest(cuts)).tightest(cuts)

    def value(self, cuts: Cuts) -> float:
        """The objective with the best levels, ``inf`` when memory runs out."""
        return self._best(cuts)[1]
