"""Lower bounds of all variants of many groups of one pipeline depth, as arrays."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from autopar.core.arrays import distinct
from autopar.cost.bounds.schedule import least_step_seconds, zero_bubble_mean
from autopar.search.bounds.chunked import ChunkedBounds, prefix_sums
from autopar.search.bounds.row import Row, fullest_rank
from autopar.search.bounds.tails import Tails
from autopar.search.bounds.totals import SHARING, Collectives, RankTotals, Totals, totals_of
from autopar.search.space.columns import Columns, alike
from autopar.search.space.groups import PointGroup
from autopar.search.space.variants import RECOMPUTE

if TYPE_CHECKING:
    from autopar.search.bounds.quick import QuickBounds

Array = npt.NDArray[np.float64]
Indices = npt.NDArray[np.intp]
Mask = npt.NDArray[np.bool_]
FULL = RECOMPUTE.index("full")
MIXED = RECOMPUTE.index("mixed")
TO_FIRST = ("gpipe", "1f1b")
"""Schedules whose bound follows paths that end with the last backward of the first rank."""


class Batch:
    """Groups of one pipeline depth.

    Args:
        quick: What the bounds are of.
        groups: With equal ``pp``.
    """

    def __init__(self, quick: QuickBounds, groups: Sequence[PointGroup]) -> None:
        self.quick = quick
        self.groups = groups
        self.table = table = groups[0].variants.table
        self.pp, self.columns = groups[0].pp, Columns.of(groups)
        self.m = self.columns.microbatches.astype(float)
        places = quick.rows.places(self.columns)
        firsts, self.row_of = alike(places, self.columns.split, self.columns.size)
        self._different = [groups[i] for i in firsts]
        self.rows = [quick.rows.row(group) for group in self._different]
        """The different rows; ``row_of`` is the place of each group's among them."""
        self.hops_s, self.message_s = quick.rows.links.all_hops(
            self.columns, self.message_bytes if quick.chained else np.zeros(len(groups))
        )
        """Messages from the first pipeline rank down to each ``[group, rank]``, the slowest."""
        self._ties: dict[tuple[int, int], Array] = {}
        self.sharing = np.searchsorted(SHARING, np.where(table.zero == 1, 0, table.zero))
        self.time_level = np.where(table.recompute == MIXED, 0, table.recompute)
        self.kept_level = np.minimum(table.recompute, FULL)

    @cached_property
    def message_bytes(self) -> Array:
        """Fewest bytes that pass a boundary between blocks ``[group]``."""
        return self.of_rows(lambda row: row.message_bytes)

    def of_rows(self, fact: Callable[[Row], float | Array | Sequence[Array | float]]) -> Array:
        """A fact of every group's row along the first axis."""
        return np.array([fact(row) for row in self.rows])[self.row_of]

    @cached_property
    def around_s(self) -> Array:
        """Messages from the last pipeline rank to the first ``[group]``."""
        around_s = self.quick.rows.links.around_s
        return np.array(
            [around_s(g, s) for g, s in zip(self.groups, self.message_bytes.tolist(), strict=True)]
        )

    @cached_property
    def valid(self) -> Mask:
        """Variants that exist ``[group, variant]``."""
        return np.array([group.variants.valid for group in self.groups])

    @property
    def possible(self) -> Mask:
        """Variants that exist in some group."""
        return np.asarray(np.logical_or.reduce(self.valid))

    @cached_property
    def misfits(self) -> Mask:
        """Variants that exist in some group and whose memory cannot suffice."""
        misfits = np.zeros(self.valid.shape, dtype=bool)
        for schedule, chunks, columns in self._by_schedules(self.possible):
            if chunks > 1:
                misfits[:, columns] = self.chunked.misfit(schedule, chunks, columns)
            else:
                room = self._room_for_kept(schedule, columns)
                misfits[:, columns] = self._kept[:, self.kept_level[columns]] > room
        return misfits

    def _by_schedules(self, wanted: Mask) -> Iterator[tuple[str, int, Indices]]:
        """Schedule, chunks and their variants among some."""
        for (schedule, chunks), every in self.table.schedules:
            columns = every[wanted[every]]
            if len(columns):
                yield schedule, chunks, columns

    def bounds(self, wanted: Mask) -> Array:
        """Least objective ``[group, variant]`` of some variants, infinite for the others."""
        seconds, again = np.zeros(self.valid.shape), np.zeros(self.valid.shape)
        for schedule, chunks, columns in self._by_schedules(wanted):
            if chunks > 1:
                seconds[:, columns] = self.chunked.seconds(schedule, chunks, columns)
                continue
            if self.pp > 1:
                seconds[:, columns] = self._single(schedule, columns)
            again[:, columns] = self._mixed_again(schedule, columns)
        some = np.flatnonzero(wanted)
        seconds[:, some] = self._with_tails(seconds[:, some], again[:, some], some)
        return np.where(wanted, self.objectives(seconds), np.inf)

    def _with_tails(self, seconds: Array, again: Array, columns: Indices) -> Array:
        """Steps that do all work, recompute that memory forces and an average tail as well."""
        m, both = self.m[:, None], self.tails.both[:, columns]
        if self.pp == 1:
            # Buckets may hide, but do not start before the last backward.
            work = self._columns(self._work, columns) + again
            forward = self.totals.forward.sum(axis=3)[:, self.sharing[columns], 0]
            hidden = (m - 1) * work + forward + both
            return np.asarray(np.maximum(m * work + self.tails.optimizer[:, columns], hidden))
        mean, weight = (self._columns(table, columns) for table in self.ranks.balanced)
        single = np.array([self.table.variants[i].chunks == 1 for i in columns.tolist()])
        tied = 2 * np.where(single, self.tie((0, self.pp - 1))[:, None], 0.0)
        rest = m * again + both * self.pp + tied
        return np.asarray(np.maximum(seconds, m * mean + weight * rest))

    def _columns(self, table: Array, columns: Indices) -> Array:
        """``[group, sharing, level]`` -> ``[group, column]``."""
        return np.asarray(table[:, self.sharing[columns], self.time_level[columns]])

    @cached_property
    def ranks(self) -> RankTotals:
        """Seconds on every kind of pipeline rank."""
        sizes, rows = self.quick.model.sizes, self.quick.rows
        parameters = np.diff(self.parameter_sums, axis=0).T
        beside = Collectives(
            gather=parameters * self.tails.rate("gather") * sizes.weight,
            scatter=parameters * self.tails.rate("scatter") * sizes.gradient,
            contention=self.quick.contention,
        )
        found = [rows.by_rank(group) for group in self._different]
        most = max(len(kinds) for kinds, _ in found)
        every = [[kinds[min(k, len(kinds) - 1)] for kinds, _ in found] for k in range(most)]
        totals = [totals_of(each, self.row_of, self.m, beside) for each in every]
        return RankTotals(totals, np.array([of_rank for _, of_rank in found])[self.row_of])

    @property
    def totals(self) -> Totals:
        """Seconds where each block is fastest."""
        return self.ranks.least

    @cached_property
    def _work(self) -> Array:
        """Work of all blocks ``[group, sharing, level]``."""
        return np.asarray(self.totals.work.sum(axis=3))

    @cached_property
    def _fullest(self) -> Array:
        """Least work of the fullest rank ``[group, sharing, level]``."""
        if len(self.ranks.kinds) == 1:
            return fullest_rank(self.totals.work, self.pp)
        return self.ranks.fullest

    @cached_property
    def _kept(self) -> Array:
        """Bytes per microbatch of all blocks ``[group, level]``."""
        return self.of_rows(lambda row: row.kept_sums)

    @cached_property
    def tails(self) -> Tails:
        """Least synchronisation and optimizer seconds ``[group, variant]``."""
        return Tails(
            rows=self.quick.rows,
            columns=self.columns,
            zero=self.table.zero,
            offload=self.table.offload,
            plain=self.table.plain,
        )

    def objectives(self, seconds: Array) -> Array:
        """Least objective ``[group, variant]`` of steps that take some seconds at least."""
        quick, name = self.quick, self.quick.options.objective
        if name == "time":
            return seconds
        if name == "time-to-target":
            return np.asarray(seconds * self.table.least_multiplier[None, :])
        computing = self._columns(self._work, np.arange(len(self.table.variants)))
        held = quick.all_held(self.columns)
        return quick.objectives(self.columns, seconds, computing, held)

    def _single(self, schedule: str, columns: Indices) -> Array:
        """Least step seconds ``[group, column]`` of pipelines with one stage per rank."""
        m = self.m[:, None, None]
        even = m * np.maximum(self._fullest, self.message_s[:, None, None])
        if not self.quick.chained:
            table = even
        elif schedule == "gpipe":
            table = self._work + (m - 1) * self._fullest
        else:
            table = np.maximum(even, self._by_schedule(schedule))
            if schedule == "1f1b":
                table = np.maximum(table, self._one_f_one_b)
        picked = self._columns(table, columns)
        if not self.quick.chained:
            return picked
        tie = self.tie((0, self.pp - 1))[:, None]
        if schedule in TO_FIRST:
            picked = picked + tie
        forward = self.totals.forward.sum(axis=3)[:, self.sharing[columns], 0]
        paths = [picked, self._tailed(columns), forward + tie]
        if schedule in ("1f1b", "zero_bubble"):
            paths.append(self._round_trip(schedule, columns))
        if schedule == "zero_bubble":
            # Its paths end with the last action of each rank, whose own tail follows.
            mean = self._columns(self._filled, columns)
            paths.append(mean + self.tails.both[:, columns] + 2 * tie / self.pp)
        return np.asarray(np.maximum.reduce(paths))

    @cached_property
    def _filled(self) -> Array:
        """Zero bubble, mean over the ranks ``[group, sharing, level]``."""
        forward = self.totals.forward.sum(axis=3)
        m = self.m[:, None, None]
        return zero_bubble_mean(
            ranks=self.pp, microbatches=m, forward_s=forward, work_s=self._work
        )

    def tie(self, ends: tuple[int, int]) -> Array:
        """Least seconds of the sum over copies of tied parameters ``[group]``."""
        if ends not in self._ties:
            if not self.quick.rows.links.ends_tied or ends[0] == ends[1]:
                self._ties[ends] = np.zeros(len(self.groups))
            else:
                tied_s = self.quick.rows.links.tied_s
                self._ties[ends] = self.columns.once(
                    (self.columns.world, self.columns.split), lambda group: tied_s(group, ends)
                )
        return self._ties[ends]

    def _by_schedule(self, schedule: str) -> Array:
        """The schedule's own bound over all boundaries ``[group, sharing, level]``."""
        forward = self.totals.forward.sum(axis=3)
        return least_step_seconds(
            schedule,
            ranks=self.pp,
            chunks=1,
            microbatches=self.m[:, None, None],
            forward_s=forward,
            backward_s=self._work - forward,
            largest_s=self._fullest,
        )

    @cached_property
    def _one_f_one_b(self) -> Array:
        """1F1B ``[group, sharing, level]``.

        Rank q runs ``warm_q = min(m, p - q)`` forwards before its first backward, which needs the
        whole way down and back: ``total + (m - 1) x_q - (warm_q - 1) f_q <= T`` for every rank;
        the ``x_q`` sum to the total, and one of them is at least that of the fullest rank.
        """
        work, p = self.totals.work, self.pp
        m = self.m[:, None, None, None]
        part = self.ranks.forward_part[..., None]
        weights = (m - 1) - part * (np.minimum(m, p - np.arange(p)) - 1)
        safe = np.where(weights > 0, weights, 1.0)
        rounds = np.where((weights > 0).all(axis=3), 1.0 / (1.0 / safe).sum(axis=3), 0.0)
        some = self._fullest * np.maximum(weights.min(axis=3), 0.0)
        way = 2 * self.hops_s[:, -1, None, None]
        return np.asarray(work.sum(axis=3) + way + np.maximum(self._work * rounds, some))

    def _tailed(self, columns: Indices) -> Array:
        """One stage per rank, its own tail counted ``[group, column]``.

        Rank q waits for the forwards before it, does ``m x_q`` and then its tail, which is at
        least ``least x_q``; with ``f_q <= part x_q`` the forwards sum to
        ``F <= T (1 - (1 - part / (m + least))^p)``.
        """
        sharing, level = self.sharing[columns], self.time_level[columns]
        ratio = self._elements_per_second[:, sharing, level]
        tail = self.per_element[:, columns]
        rounds = self.m[:, None] + ratio * tail
        part = self.ranks.forward_part[:, sharing, level]
        filled = 1 - (1 - np.minimum(part / rounds, 1.0)) ** self.pp
        forward = self.totals.forward.sum(axis=3)[:, sharing, 0]
        some = rounds * self._fullest[:, sharing, level]
        return np.asarray(np.maximum(some, forward / np.maximum(filled, 1e-300)))

    def _round_trip(self, schedule: str, columns: Indices) -> Array:
        """1F1B or zero bubble, a round trip below each rank ``[group, column]``.

        Rank q has run ``warm_q = min(m, p - q)`` forwards when its first backward comes up from
        the last stage: with the backwards ``B_q`` after it (or their part that goes up at once),
        ``F + B_q + m x_q - warm_q f_q + tail_q <= T``. With ``f_q <= part x_q``,
        ``tail_q >= least x_q`` and ``B_q >= back`` times the work after q, that bounds the work of
        each rank by that of the ranks after it, and so the weighed work of all of them by
        ``most (T - F) - tied``. Sums over tied parameters delay the first and the last rank.
        """
        sharing, level = self.sharing[columns], self.time_level[columns]
        ranks, m = self.ranks, self.m[:, None]
        part = ranks.forward_part[:, sharing, level]
        back = 1 - part if schedule == "1f1b" else ranks.return_part[:, sharing, level]
        least = self._elements_per_second[:, sharing, level] * self.per_element[:, columns]
        weights = ranks.weights_of(sharing, level)
        largest, most, tied = np.maximum.reduce(weights), np.zeros_like(part), np.zeros_like(part)
        tie = self.tie((0, self.pp - 1))[:, None]
        for rank in reversed(range(self.pp)):
            rounds = m + least - part * np.minimum(m, self.pp - rank)
            share = weights[rank] / np.maximum(rounds, 1e-100)
            after = np.maximum(1 - back * share / largest, 0.0)
            most = share + after * most
            tied = (share * tie if rank in (0, self.pp - 1) else 0.0) + after * tied
        forward = self.totals.forward.sum(axis=3)[:, sharing, 0] + self.hops_s[:, -1:]
        return np.asarray(forward + (ranks.balanced[0][:, sharing, level] + tied) / most)

    @cached_property
    def _elements_per_second(self) -> Array:
        """Fewest elements of a block per second of its work ``[group, sharing, level]``."""
        work = self.ranks.slowest_work
        elements = self.of_rows(lambda row: row.untied_parameters)[:, None, None, :]
        ratio = np.divide(
            np.broadcast_to(elements, work.shape),
            work,
            out=np.full_like(work, np.inf),
            where=work > 0,
        )
        return np.asarray(ratio.min(axis=3))

    @cached_property
    def per_element(self) -> Array:
        """Least synchronisation and optimizer seconds per dense element ``[group, variant]``."""
        return np.asarray(self.tails.sync_per_element + self.tails.optimizer_per_element)

    @cached_property
    def parameter_sums(self) -> Array:
        """Dense elements on a rank before each boundary ``[boundary, group]``."""
        return prefix_sums(self.of_rows(lambda row: row.parameters))

    @cached_property
    def chunked(self) -> ChunkedBounds:
        """Bounds of several stages per rank."""
        return ChunkedBounds(self)

    @cached_property
    def room(self) -> Array:
        """Bytes of each rank for parameters and activations ``[group, rank]``."""
        return self.quick.room(self.columns)

    @cached_property
    def bytes_per_element(self) -> Array:
        """Weight, gradient and state bytes of an element on a rank ``[group, variant]``."""
        sizes = self.quick.model.sizes
        shards = self.tails.shards[:, None]
        zero, offload = self.table.zero[None, :], self.table.offload[None, :]
        weight = sizes.weight / np.where(zero >= 3, shards, 1)
        gradient = sizes.gradient / np.where(zero >= 2, shards, 1)
        state = np.where(offload, sizes.master, sizes.state) / np.where(zero >= 1, shards, 1)
        return np.asarray(weight + gradient + state)

    def _room_for_kept(self, schedule: str, columns: Indices) -> Array:
        """Most bytes per microbatch that all ranks can keep ``[group, column]``.

        On every rank ``kept_r flights_r + parameters_r <= room``; divided by the microbatches in
        flight and summed over the ranks.
        """
        known = {m: self._flights(schedule, int(m)) for m in set(self.m.tolist())}
        live = np.array([known[m] for m in self.m.tolist()])
        parameters = self.tails.elements[:, None] * self.bytes_per_element[:, columns]
        room = (self.room / live).sum(axis=1)[:, None]
        return np.asarray(room - parameters / live.max(axis=1)[:, None])

    def _flights(self, schedule: str, microbatches: int) -> Array:
        """Microbatches in flight on each rank, one stage per rank."""
        found = self.quick.model.schedule(schedule)
        if found.check(self.pp, self.pp, microbatches) is not None:
            return np.ones(self.pp)
        live = self.quick.model.in_flight
        peaks = [live(schedule, self.pp, self.pp, microbatches, rank) for rank in range(self.pp)]
        return np.array([max(counts)[0] for counts in peaks], dtype=float)

    def _mixed_again(self, schedule: str, columns: Indices) -> Array:
        """Least recompute seconds per microbatch ``[group, column]`` that memory forces."""
        mixed = np.flatnonzero(self.table.recompute[columns] == MIXED)
        room = self._room_for_kept(schedule, columns[mixed])
        excess = np.maximum(0.0, self._kept[:, :1] - room)
        for number in distinct(self.row_of[excess.any(axis=1)]).tolist():
            mine = np.flatnonzero(self.row_of == number)
            excess[mine] = np.interp(excess[mine], *self.rows[number].again)
        result = np.zeros((len(excess), len(columns)))
        result[:, mixed] = excess
        return result
