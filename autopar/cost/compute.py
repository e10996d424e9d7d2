"""Seconds of a block for a microbatch: measured curves if they apply, else a roofline per op."""

from __future__ import annotations

from autopar.cluster import Cluster, Device
from autopar.core.errors import InputError
from autopar.cost import constants as k
from autopar.graph import Amount, Block, GraphProfile, Op

BlockSeconds = tuple[tuple[float, ...], tuple[float, ...]]
"""Forward and backward seconds of every block."""

ITEM_BYTES = {"float64": 8, "float32": 4, "tf32": 4, "bfloat16": 2, "float16": 2}
"""Bytes of an element stored in each precision that a plan may ask for."""


class ComputeModel:
    """Block times on the devices of a cluster.

    Args:
        profile: What is trained.
        cluster: Where.
        precision: Parameter and compute dtype.

    Raises:
        InputError: The precision is not one autopar knows.
    """

    def __init__(self, profile: GraphProfile, cluster: Cluster, precision: str) -> None:
        if precision not in ITEM_BYTES:
            raise InputError(
                f"unknown precision '{precision}'", hint="known: " + ", ".join(sorted(ITEM_BYTES))
            )
        self.profile = profile
        self.cluster = cluster
        self.precision = precision
        self.byte_scale = ITEM_BYTES[precision] / _item_bytes(profile)
        self._seconds: dict[tuple[float, str, int], BlockSeconds] = {}

    def why_not(self, device: Device) -> str | None:
        """Why the profile has no time for a device in this precision, or ``None``."""
        if self.measured_on(device):
            if self.byte_scale != 1.0:
                return (
                    f"the profile was measured with {_item_bytes(self.profile)}-byte elements, "
                    f"there is no measured time for {self.precision}"
                )
            return None
        if self.precision not in device.peak_flop_per_s:
            return (
                f"{device.name} has no peak for {self.precision}, "
                f"known: {', '.join(sorted(device.peak_flop_per_s)) or 'none'}"
            )
        return None

    def measured_on(self, device: Device) -> bool:
        """True when the profile's measured curves stand for this device."""
        measurement = self.profile.measurement
        if measurement is None:
            return False
        local_cpu = device.kind == "cpu" and self.cluster.measured
        return local_cpu or measurement.device == device.name

    def slowdown(self, device: Device, ranks_on_host: int) -> float:
        """Time under ``ranks_on_host`` busy ranks over the time when the profile was measured."""
        measurement = self.profile.measurement
        if measurement is None or not self.measured_on(device):
            return 1.0
        table = self.cluster.busy_slowdown
        return interpolate(table, ranks_on_host) / interpolate(table, measurement.busy_ranks)

    def block_seconds(self, samples: float, device: Device, ranks_on_host: int) -> BlockSeconds:
        """Forward and backward seconds of every block for one microbatch.

        Raises:
            InputError: The profile has no curve for a block, or the device no peak.
        """
        key = (samples, device.name, ranks_on_host)
        if key not in self._seconds:
            reason = self.why_not(device)
            if reason is not None:
                raise InputError(reason, hint="choose another device")
            timed = self._measured if self.measured_on(device) else self._roofline
            scale = self.slowdown(device, ranks_on_host)
            if self.measured_on(device) and self.profile.measurement is not None:
                scale *= self.profile.measurement.composition_at(samples)
            unique: dict[str, tuple[float, float]] = {}
            for block in self.profile.blocks:
                if block.signature not in unique:
                    unique[block.signature] = timed(block, samples, device)
            pairs = [unique[block.signature] for block in self.profile.blocks]
            self._seconds[key] = (
                tuple(forward * scale for forward, _ in pairs),
                tuple(backward * scale for _, backward in pairs),
            )
        return self._seconds[key]

    def optimizer_seconds_per_byte(self, device: Device, ranks_on_host: int) -> float:
        """Optimizer step and gradient clearing, per parameter byte (as stored in the plan).

        Without a measurement: a streaming kernel that reads weight, gradient and state and writes
        weight and state, so ``(3 + 2 r)`` bytes per parameter byte with ``r`` the state ratio.
        """
        measurement = self.profile.measurement
        if measurement is not None and self.measured_on(device):
            clearing = measurement.zero_grad_s / max(self.profile.parameter_bytes, 1)
            per_byte = measurement.optimizer_s_per_byte + clearing
            return per_byte * self.slowdown(device, ranks_on_host)
        moved = 3 + 2 * self.profile.optimizer.state_bytes_per_parameter_byte
        return moved / (device.memory_bytes_per_s * k.MEMORY_EFFICIENCY.value)

    def accumulate_seconds_per_byte(self, device: Device, ranks_on_host: int) -> float:
        """Adding a later microbatch's gradient to the one that is there, per parameter byte.

        Without a measurement: a streaming kernel that reads two gradients and writes one.
        """
        measurement = self.profile.measurement
        if measurement is not None and self.measured_on(device):
            return measurement.accumulate_s_per_byte * self.slowdown(device, ranks_on_host)
        return 3 / (device.memory_bytes_per_s * k.MEMORY_EFFICIENCY.value)

    def checkpoint_seconds(self, block: Block, device: Device, ranks_on_host: int) -> float:
        """Cost of recomputing a block besides running it again; 0 when not measured."""
        measurement = self.profile.measurement
        if measurement is None or not self.measured_on(device):
            return 0.0
        per_op_s = measurement.checkpoint_s_per_op * (block.stop_op - block.first_op)
        return (measurement.checkpoint_s + per_op_s) * self.slowdown(device, ranks_on_host)

    def _measured(self, block: Block, samples: float, device: Device) -> tuple[float, float]:
        measurement = self.profile.measurement
        curve = measurement.curves.get(block.signature) if measurement else None
        if curve is None:  # too large to time here, the profile said so
            if self.precision not in device.peak_flop_per_s:
                raise InputError(
                    f"block '{block.name}' was not timed and {device.name} has no "
                    f"{self.precision} peak to price it by",
                    hint="measure the cluster again with `autopar profile --cluster local`",
                )
            return self._roofline(block, samples, device)
        return curve.at(samples)

    def _roofline(self, block: Block, samples: float, device: Device) -> tuple[float, float]:
        """Per op: the larger of compute, memory and launch time (Williams et al. 2009)."""
        forward = backward = 0.0
        for op in self.profile.ops[block.first_op : block.stop_op]:
            forward += self._op(op, op.forward_flop, op.forward_bytes, samples, device, 1.0)
            backward += self._op(
                op, op.backward_flop, op.backward_bytes, samples, device, k.BACKWARD_KERNELS.value
            )
        return forward, backward

    def _op(
        self, op: Op, flop: Amount, size: Amount, samples: float, device: Device, kernels: float
    ) -> float:
        work = flop.at(samples)
        moved = size.at(samples) * self.byte_scale
        if work <= 0 and moved <= 0:
            return 0.0
        peak = device.peak_flop_per_s[self.precision]
        compute = work / (peak * k.MATMUL_EFFICIENCY.value) + (
            k.MATMUL_RAMP_S.value if work else 0
        )
        memory = moved / (device.memory_bytes_per_s * k.MEMORY_EFFICIENCY.value)
        return max(compute, memory, op.kernels * kernels * device.launch_s)


def _item_bytes(profile: GraphProfile) -> int:
    count, size = profile.parameter_count, profile.parameter_bytes
    return round(size / count) if count else 4


def interpolate(table: dict[int, float], busy: int) -> float:
    """Slowdown for a number of busy ranks: linear between keys, in proportion beyond the last."""
    if not table:
        return 1.0
    keys = sorted(table)
    if busy <= keys[0]:
        return table[keys[0]]
    if busy >= keys[-1]:
        return table[keys[-1]] * busy / keys[-1]
    right = next(i for i, key in enumerate(keys) if key >= busy)
    low, high = keys[right - 1], keys[right]
    weight = (busy - low) / (high - low)
    return table[low] + (table[high] - table[low]) * weight
