"""Objectives: the number to minimise, from step time and memory of a layout."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

import numpy as np

from autopar.core.errors import InputError
from autopar.cost import memory
from autopar.cost.bounds.step import Band, Bounds
from autopar.cost.layout import Cuts, Layout
from autopar.cost.power import usd_per_second
from autopar.cost.tables import Table
from autopar.cost.work import Levels
from autopar.results import PlanPrice
from autopar.search.stages.chunks import chunked_cuts

Bytes = TypeVar("Bytes", float, Table)


@dataclass(frozen=True, kw_only=True)
class Goal:
    """Objective and memory limit on one layout.

    Attributes:
        layout: Everything but the stage boundaries.
        objective: One of the search objectives.
        max_memory_bytes: User's limit per device, if any.

    Raises:
        InputError: The objective needs figures that a device lacks.
    """

    layout: Layout
    objective: str
    max_memory_bytes: float | None = None

    @property
    def chunked(self) -> bool:
        """True when a rank holds several stages: a few partitions are in the space."""
        return self.layout.stages > self.layout.mesh.pp

    @property
    def open_levels(self) -> bool:
        """True when recompute levels follow from the boundaries."""
        return False

    def levels(self, cuts: Cuts) -> Levels | None:
        """Recompute level of every block for some boundaries."""
        return self.layout.levels

    @cached_property
    def band(self) -> Band:
        """Stage lengths that leave a block to every other stage and may fit in memory.

        A single stage holds all blocks, whether or not they fit.
        """
        layout = self.layout
        n = layout.tables.count
        if layout.stages == 1:
            return Band(blocks=n, width=n, shortest=n)
        longest = n - layout.stages + 1
        easiest = memory.SpanMemory(layout=layout, take=lambda table: table).least()
        limit = max(self.limit(rank) for rank in self._kinds_of_ranks)
        ends = np.arange(n + 1)
        lengths = ends[None, :] - ends[:, None]
        fits = (lengths > 0) & (self._high(easiest) <= limit)
        widest = int(lengths[fits].max()) if fits.any() else 1
        return Band(blocks=n, width=min(longest, widest))

    @cached_property
    def _kinds_of_ranks(self) -> list[int]:
        """One pipeline coordinate of each kind of device group."""
        layout = self.layout
        kinds = {layout.group_kind(rank): rank for rank in range(layout.mesh.pp)}
        return list(kinds.values())

    @cached_property
    def bounds(self) -> Bounds:
        """Step-time bounds of the layout."""
        return Bounds(layout=self.layout, band=self.band)

    @cached_property
    def memory(self) -> memory.SpanMemory:
        """Memory of the runs in the band."""
        return memory.SpanMemory(layout=self.layout, take=self.band.take)

    @cached_property
    def slope_and_floor(self) -> tuple[float, float]:
        """``value = slope x step seconds + floor`` (floor: energy of the computing itself)."""
        if self.objective == "cost":
            rate = usd_per_second(self.layout)
            if rate is None:
                raise InputError(
                    "objective 'cost' needs usd_per_hour of every device",
                    hint="add prices to the cluster or choose another objective",
                )
            return rate, 0.0
        if self.objective == "time-to-target":
            return self.layout.steps_multiplier.value, 0.0
        if self.objective != "energy":
            return 1.0, 0.0
        idle = floor = 0.0
        cluster, m = self.layout.model.cluster, self.layout.microbatches
        totals = [span.total for span in self.layout.spans]
        for group in self.layout.groups:
            for device_id in group:
                device = cluster.device(device_id)
                if device.power_watt is None or device.idle_watt is None:
                    raise InputError(
                        f"objective 'energy' needs the power of device '{device.name}'",
                        hint="add power_watt and idle_watt to the cluster",
                    )
                idle += device.idle_watt
        extra = min(
            (cluster.device(d).power_watt or 0.0) - (cluster.device(d).idle_watt or 0.0)
            for d in self.layout.placement
        )
        floor = max(0.0, extra) * m * min(totals) * self.layout.mesh.replicas
        return idle, floor

    @cached_property
    def _limits(self) -> dict[object, float]:
        return {}

    def limit(self, rank: int) -> float:
        """Bytes that the upper end of the memory estimate may not exceed."""
        kind = self.layout.group_kind(rank)
        if kind not in self._limits:
            capacity = memory.rank_capacity(self.layout, rank)
            self._limits[kind] = min(capacity, self.max_memory_bytes or capacity)
        return self._limits[kind]

    def holder(self, rank: int) -> str:
        """What sets :meth:`limit`, as the start of "... 40 GiB"."""
        capacity = memory.rank_capacity(self.layout, rank)
        return "--max-memory allows" if self.limit(rank) < capacity else "the device has"

    def stage_table(self, stage: int) -> Table:
        """Lower bound of the objective by run of the band; inf where memory runs out."""
        rank = self.layout.rank_of(stage)
        needed = self.memory.totals(rank)
        fits = self.band.inside & (self._high(needed) <= self.limit(rank))
        if self.objective == "memory":
            return np.where(fits, needed, np.inf)
        slope, floor = self.slope_and_floor
        return np.where(fits, slope * self.bounds.stage_table(stage) + floor, np.inf)

    def from_time(self, step_s: float) -> float:
        """Objective's lower bound from a step-time bound; no bound for memory."""
        if self.objective == "memory":
            return 0.0
        slope, floor = self.slope_and_floor
        return slope * step_s + floor

    def floor(self) -> float:
        """Lower bound of the objective over all boundaries, beside the stage tables."""
        if not self.chunked:
            return 0.0
        cuts = chunked_cuts(self.layout.model.profile, self.layout.stages)
        return self.from_time(min(self.bounds.chunked(c) for c in cuts))

    def prefix_bound(self, cuts: Cuts) -> float:
        """Lower bound of the objective when the first stages are fixed."""
        return self.from_time(self.bounds.prefix(cuts))

    def _high(self, total_bytes: Bytes) -> Bytes:
        """Upper end of a memory estimate."""
        return total_bytes * self.layout.model.memory.high_factor

    def feasible(self, cuts: Cuts) -> bool:
        """True when the upper end of every rank's memory is within its limit."""
        needs = enumerate(self._needed(cuts))
        return all(self._high(size) <= self.limit(rank) for rank, size in needs)

    def _needed(self, cuts: Cuts) -> Iterator[float]:
        """Peak bytes per pipeline coordinate."""
        return (found.total_bytes for found in memory.memories(self.layout, cuts))

    def tightest(self, cuts: Cuts) -> tuple[int, float]:
        """Pipeline rank with the largest excess over its limit, and the bytes it needs."""
        needs = [self._high(size) for size in self._needed(cuts)]
        rank = max(range(len(needs)), key=lambda r: needs[r] - self.limit(r))
        return rank, needs[rank]

    def value(self, cuts: Cuts) -> float:
        """The objective, ``inf`` when memory runs out."""
        if not self.feasible(cuts):
            return float("inf")
        if self.objective == "memory":
            return max(self._needed(cuts))
        step = self.layout.step_seconds(cuts)
        if self.objective == "energy":
            return self._energy(cuts, step)
        return self.slope_and_floor[0] * step

    def _energy(self, cuts: Cuts, step_s: float) -> float:
        idle, _ = self.slope_and_floor
        total = idle * step_s
        cluster = self.layout.model.cluster
        for stage, cost in enumerate(self.layout.stage_costs(cuts)):
            busy = self.layout.microbatches * (cost.forward_s + cost.backward_s + cost.recompute_s)
            for device_id in self.layout.groups[self.layout.rank_of(stage)]:
                device = cluster.device(device_id)
                total += busy * ((device.power_watt or 0.0) - (device.idle_watt or 0.0))
        return total


def value_of(price: PlanPrice, objective: str) -> float:
    """The objective of a priced plan.

    Raises:
        InputError: The price lacks it.
    """
    if objective == "memory":
        return price.peak_memory_bytes.value
    if objective == "time-to-target":
        return price.step_time_s.value * price.steps_multiplier.value
    estimate = {"energy": price.energy_joule, "cost": price.cost_usd}.get(
        objective, price.step_time_s
    )
    if estimate is None:
        raise InputError(
            f"objective '{objective}' needs figures that a device lacks",
            hint="add power or price to the cluster",
        )
    return estimate.value
