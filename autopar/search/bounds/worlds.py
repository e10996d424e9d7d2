"""What bounds need to know of the first devices of a cluster."""

from __future__ import annotations

from functools import cached_property

import numpy as np
import numpy.typing as npt

from autopar.cluster import Device
from autopar.core.arrays import distinct
from autopar.cost import CostModel, memory
from autopar.search.options import SearchOptions

Array = npt.NDArray[np.float64]
Kinds = tuple[tuple[Device, int], ...]
"""Devices, and how many are busy on their host."""


class World:
    """Facts of the first ``size`` devices.

    Args:
        model: Shared caches.
        options: What is asked.
        size: Devices.
    """

    def __init__(self, model: CostModel, options: SearchOptions, size: int) -> None:
        placement = model.first_devices(size)
        self.placement = placement
        self.communication = model.communication(placement)
        self.kinds = model.kinds(placement, placement)
        self.why_not = next(
            (reason for device, _ in self.kinds if (reason := model.compute.why_not(device))), None
        )
        most = max(memory.device_capacity(device) for device, _ in self.kinds)
        self.memory_limit = min(most, options.max_memory_bytes or most)
        self.regular = self.communication.shapes.regular
        self._limits: dict[int, Array] = {}
        self._place = {(device.name, busy): i for i, (device, busy) in enumerate(self.kinds)}
        self._model = model
        contexts, each = zip(
            *(memory.process_bytes(model, device) for device, _ in self.kinds), strict=True
        )
        self.process_bytes = (min(contexts), min(each))
        devices = [device for device, _ in self.kinds]
        self.optimizer_s = [
            min(
                model.compute.optimizer_seconds_per_element(device, busy, offload)
                for device, busy in self.kinds
            )
            for offload in (False, True)
        ]
        # The cheapest and least thirsty kind for every device: a bound, exact when all are equal.
        self.usd_per_s = _least([d.usd_per_hour for d in devices], size / 3600)
        self.idle_watt = _least([d.idle_watt for d in devices], size)
        extras = [
            d.power_watt - d.idle_watt
            for d in devices
            if d.power_watt is not None and d.idle_watt is not None
        ]
        self.extra_watt = max(0.0, min(extras)) if len(extras) == len(devices) else None

    @cached_property
    def _kind_of(self) -> npt.NDArray[np.intp]:
        """Number of the kind of every device."""
        device, busy = self._model.cluster.device, self.communication.ranks_on_host
        return np.array([self._place[device(d).name, busy(d)] for d in self.placement])

    def kinds_of(self, start: int, stop: int) -> tuple[tuple[Device, int], ...]:
        """Different kinds among the ranks ``[start, stop)``."""
        if len(self.kinds) == 1:
            return self.kinds
        return tuple(self.kinds[i] for i in distinct(self._kind_of[start:stop]))

    def limits(self, pp: int) -> Array:
        """Bytes of the smallest device of every pipeline rank, or what the user allows."""
        if pp not in self._limits:
            stage = len(self.placement) // pp
            starts = range(0, len(self.placement), stage) if len(self.kinds) > 1 else (0,)
            kinds = [self.kinds_of(start, start + stage) for start in starts]
            sizes = [min(memory.device_capacity(d) for d, _ in each) for each in kinds]
            self._limits[pp] = np.minimum(np.broadcast_to(sizes, pp), self.memory_limit)
        return self._limits[pp]


def _least(values: list[float | None], factor: float) -> float | None:
    known = [value for value in values if value is not None]
    return min(known) * factor if len(known) == len(values) else None
