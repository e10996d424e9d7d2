"""Joules and money of a step from the devices' power and price figures."""

from __future__ import annotations

from collections.abc import Sequence

from autopar.core.estimate import Estimate
from autopar.cost.layout import Layout


def energy_joule(layout: Layout, busy_s: Sequence[float], step_s: Estimate) -> Estimate | None:
    """Board power while computing, idle power for the rest of the step.

    Args:
        layout: Where the plan runs.
        busy_s: Computing seconds of each virtual stage per step.
        step_s: Step time.

    Returns:
        Energy of all devices used, or ``None`` when a device has no power figures.
    """
    cluster = layout.model.cluster
    busy = [sum(busy_s[s] for s in layout.stages_of(rank)) for rank in range(layout.mesh.pp)]
    value = low = high = 0.0
    for rank, group in enumerate(layout.groups):
        for device_id in group:
            device = cluster.device(device_id)
            if device.power_watt is None or device.idle_watt is None:
                return None
            extra = (device.power_watt - device.idle_watt) * busy[rank]
            value += device.idle_watt * step_s.value + extra
            low += device.idle_watt * step_s.low
            low += extra * step_s.low / step_s.value if step_s.value else 0.0
            high += device.idle_watt * step_s.high
            high += extra * step_s.high / step_s.value if step_s.value else 0.0
    return Estimate(value=value, low=min(low, value), high=max(high, value), source="analytic")


def usd_per_second(layout: Layout) -> float | None:
    """Price of all devices used, ``None`` when one has no price."""
    total = 0.0
    for device_id in layout.placement:
        price = layout.model.cluster.device(device_id).usd_per_hour
        if price is None:
            return None
        total += price / 3600
    return total


def cost_usd(layout: Layout, step_s: Estimate) -> Estimate | None:
    """Rent of all devices used for one step."""
    rate = usd_per_second(layout)
    return None if rate is None else step_s.scaled(rate)
