"""Bounds of a point in microseconds, before any layout is built for it."""

from __future__ import annotations

import numpy as np

from autopar.core.errors import InputError
from autopar.cost import CostModel, memory
from autopar.cost import constants as k
from autopar.cost.bounds import Vector, quick_bound
from autopar.search.options import SearchOptions
from autopar.search.space import Point


class QuickBounds:
    """What can be said of a point from sums over the profile.

    Args:
        model: Shared caches.
        options: Objective and limits.
    """

    def __init__(self, model: CostModel, options: SearchOptions) -> None:
        self.model = model
        self.options = options
        chain = model.tables.chain[1:-1]
        self.chained = all(a.at(1) > 0 and b.at(1) > 0 for a, b in chain)
        self._blocks: dict[tuple[int, str, int], tuple[Vector, Vector]] = {}
        self._worlds: dict[int, _World] = {}
        self._kept_bytes: dict[tuple[int, str], Vector] = {}
        profile = model.profile
        state = profile.optimizer.state_bytes_per_parameter_byte
        self._state_bytes = profile.parameter_bytes * model.compute.byte_scale * (2 + state)

    def rejection(self, point: Point) -> str | None:
        """Why no boundaries of the point can work, or ``None`` when some may."""
        world = self._world(point.world)
        if world.why_not is not None:
            return f"no time for {self.options.precision} on a device"
        if self.least_memory(point) > world.memory_limit:
            return "memory"
        return None

    def least_memory(self, point: Point) -> float:
        """Some rank holds at least the average of parameters, gradients and optimizer state."""
        world = self._world(point.world)
        samples = point.microbatch_size * point.microbatches
        shared = world.framework_bytes + self.model.profile.input_bytes * samples
        return (self._state_bytes / point.pp + shared) * (1 + k.MEMORY_MARGIN.value)

    def cannot_fit(self, point: Point) -> bool:
        """True when even the sum over ranks of what they must hold exceeds their memory.

        Every stage keeps at least one block for its microbatches in flight; the sum is least
        when the most microbatches meet the smallest blocks.
        """
        world = self._world(point.world)
        kept = self._kept(point)
        schedule = self.model.schedule(point.schedule)
        live = schedule.in_flight(point.pp, point.stages, point.microbatches)
        fullest = [max(peaks, key=sum) for peaks in live]
        flights = np.sort(np.array(fullest, dtype=float).ravel())
        stages = point.stages
        least = float(flights[::-1] @ kept[:stages] + flights[0] * kept[stages:].sum())
        samples = point.microbatch_size * point.microbatches
        shared = world.framework_bytes + self.model.profile.input_bytes * samples
        needed = self._state_bytes + least + point.pp * shared
        return needed * (1 + k.MEMORY_MARGIN.value) > point.pp * world.memory_limit

    def _kept(self, point: Point) -> Vector:
        """Bytes each block keeps per microbatch, smallest first."""
        key = (point.microbatch_size, point.recompute)
        if key not in self._kept_bytes:
            scale = self.model.compute.byte_scale
            sizes = [
                (b.boundary_bytes if point.recompute == "full" else b.saved_bytes).at(
                    point.microbatch_size
                )
                for b in self.model.profile.blocks
            ]
            self._kept_bytes[key] = np.sort(np.array(sizes) * scale)
        return self._kept_bytes[key]

    def bound(self, point: Point) -> float:
        """Lower bound of the objective."""
        world = self._world(point.world)
        if self.options.objective == "memory":
            return self.least_memory(point) / (1 + k.MEMORY_MARGIN.value)
        blocks = self._block_seconds(point, world)
        step = quick_bound(blocks, point.schedule, point.pp, point.microbatches, self.chained)
        if self.options.objective == "cost":
            return step * world.need("usd_per_s")
        if self.options.objective == "energy":
            computing = float(blocks[0].sum() + blocks[1].sum()) * point.microbatches
            return step * world.need("idle_watt") + computing * point.dp_replicate * world.need(
                "extra_watt"
            )
        return step

    def _block_seconds(self, point: Point, world: _World) -> tuple[Vector, Vector]:
        key = (point.microbatch_size, point.recompute, point.world)
        if key not in self._blocks:
            options = [
                self.model.compute.block_seconds(
                    point.microbatch_size, self.model.cluster.device(d), busy
                )
                for d, busy in world.kinds
            ]
            forward = np.min([f for f, _ in options], axis=0)
            backward = np.min([b for _, b in options], axis=0)
            again = forward if point.recompute == "full" else 0.0 * forward
            self._blocks[key] = (forward, backward + again)
        return self._blocks[key]

    def _world(self, size: int) -> _World:
        if size not in self._worlds:
            self._worlds[size] = _World(self.model, self.options, size)
        return self._worlds[size]


class _World:
    """Facts of the first ``size`` devices."""

    def __init__(self, model: CostModel, options: SearchOptions, size: int) -> None:
        cluster = model.cluster
        communication = model.communication(tuple(range(size)))
        kinds: dict[tuple[str, int], int] = {}
        counts: dict[str, int] = {}
        for device_id in range(size):
            name = cluster.device(device_id).name
            counts[name] = counts.get(name, 0) + 1
            kinds.setdefault((name, communication.ranks_on_host(device_id)), device_id)
        self.kinds = [(device_id, busy) for (_, busy), device_id in kinds.items()]
        devices = {cluster.device(d).name: cluster.device(d) for d, _ in self.kinds}
        reasons = [model.compute.why_not(device) for device in devices.values()]
        self.why_not = next((reason for reason in reasons if reason), None)
        most = max(device.memory_bytes for device in devices.values())
        self.memory_limit = min(most, options.max_memory_bytes or most)
        self.framework_bytes = min(
            model.profile.measurement.resident_bytes
            if model.profile.measurement and model.compute.measured_on(device)
            else memory.assumed_framework(device).value
            for device in devices.values()
        )
        self._rates: dict[str, float | None] = {
            "usd_per_s": _total([(d.usd_per_hour, counts[n]) for n, d in devices.items()], 3600),
            "idle_watt": _total([(d.idle_watt, counts[n]) for n, d in devices.items()], 1),
            "extra_watt": None,
        }
        extras = [
            d.power_watt - d.idle_watt
            for d in devices.values()
            if d.power_watt is not None and d.idle_watt is not None
        ]
        if len(extras) == len(devices):
            self._rates["extra_watt"] = max(0.0, min(extras))

    def need(self, name: str) -> float:
        """A rate of the objective.

        Raises:
            InputError: A device lacks the figure.
        """
        rate = self._rates[name]
        if rate is None:
            raise InputError(
                f"this objective needs {name} of every device",
                hint="add price and power to the cluster or choose another objective",
            )
        return rate


def _total(parts: list[tuple[float | None, int]], divisor: float) -> float | None:
    if any(value is None for value, _ in parts):
        return None
    return sum((value or 0.0) * count for value, count in parts) / divisor
