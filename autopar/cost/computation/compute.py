"""Seconds of compute: measured curves if they apply, else a calibrated roofline per op."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from autopar.calibration import Calibration, Constants
from autopar.calibration.table import device_class
from autopar.cluster import Cluster, Device
from autopar.core.errors import InputError
from autopar.cost import constants as k
from autopar.cost.computation.roofline import Phases, Roofline
from autopar.cost.states import ITEM_BYTES, ParameterBytes
from autopar.cost.work import StageWork, Vector
from autopar.graph import GraphProfile
from autopar.strategies import BlockWork
from autopar.strategies.autocast import CAST


class ComputeModel:
    """Block times on the devices of a cluster.

    Args:
        profile: What is trained.
        cluster: Where.
        precision: Compute dtype.
        calibration: Constants of devices; the shipped ones when not given.

    Raises:
        InputError: The precision is not one autopar knows.
    """

    def __init__(
        self,
        profile: GraphProfile,
        cluster: Cluster,
        precision: str,
        calibration: Calibration | None = None,
    ) -> None:
        ratio = profile.optimizer.state_bytes_per_parameter_byte
        self.sizes = ParameterBytes.of(precision, ratio)
        self.profile = profile
        self.cluster = cluster
        self.precision = precision
        self.calibration = calibration or Calibration.shipped()
        self.activation_scale = ITEM_BYTES[precision] / _item_bytes(profile)
        self._constants: dict[str, Constants] = {}
        self._rooflines: dict[str, Roofline] = {}

    def why_not(self, device: Device) -> str | None:
        """Why the profile has no time for a device in this precision, or ``None``."""
        if self.measured_on(device):
            if self.activation_scale != 1.0:
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

    def constants(self, device: Device) -> Constants:
        """Calibrated constants of a device."""
        if device.name not in self._constants:
            self._constants[device.name] = self.calibration.planning(device_class(device.name))
        return self._constants[device.name]

    def calibrated(self, device: Device) -> bool:
        """True when published runs on the device are part of the calibration."""
        return not self.constants(device).notes

    def assumed(self, device: Device) -> list[str]:
        """Lines about where the constants of a device come from."""
        fitted_on = self.calibration.fitted_on
        rows = fitted_on.get("rows")
        origin = f"fitted on {rows} published runs" if rows else "global values, nothing fitted"
        constants = self.constants(device)
        return [f"compute constants of {device.name}: {origin}", *constants.notes]

    def slowdown(self, device: Device, busy: int) -> float:
        """Time under ``busy`` ranks on the host over the time when the profile was measured.

        Both loads count in ranks of as many threads as those that the host was measured with: a
        plan's ranks have the profile's threads.
        """
        measurement = self.profile.measurement
        if measurement is None or not self.measured_on(device):
            return 1.0
        table, threads = self.cluster.busy_slowdown, self.cluster.threads_per_rank
        each = 1.0 if threads is None else measurement.threads / threads
        return interpolate(table, busy * each) / interpolate(table, measurement.busy_ranks * each)

    def phases(
        self,
        work: StageWork,
        samples: float | Vector,
        device: Device,
        busy: int,
        *,
        eager: bool = False,
    ) -> Phases:
        """Seconds of every block for one microbatch, collectives left out.

        Args:
            work: The blocks as divided.
            samples: Microbatch size; may be a column of sizes where nothing was measured on the
                device.
            device: Kind of device.
            busy: Busy devices on its host.
            eager: Ranks run the user's own module instead of the traced ops.

        Raises:
            InputError: The profile has no curve for a block, or the device no peak.
        """
        reason = self.why_not(device)
        if reason is not None:
            raise InputError(reason, hint="choose another device")
        if self.measured_on(device):
            assert isinstance(samples, (int, float))  # curves are read one size at a time
            return self._measured(work, samples, device, busy, eager)
        return self._roofline(device).phases(work, samples)

    def least_sample_seconds(self, work: StageWork, device: Device) -> float:
        """No step takes less per sample and device, however the model is divided.

        0 where measured curves stand for the device.

        Args:
            work: The undivided blocks.
            device: Kind of device.
        """
        if self.measured_on(device) or self.why_not(device) is not None:
            return 0.0
        return self._roofline(device).least_sample_seconds(work)

    def many_phases(
        self, works: Sequence[StageWork], samples: Vector, device: Device
    ) -> list[Phases]:
        """:meth:`phases` of the different blocks of several divisions, priced together.

        Raises:
            InputError: The device has no peak.
        """
        reason = self.why_not(device)
        if reason is not None:
            raise InputError(reason, hint="choose another device")
        return self._roofline(device).many_phases(works, samples)

    def cast_seconds(self, work: StageWork, device: Device) -> Vector:
        """Casting the weights of each block's products, or their gradients back.

        Weights are cast once a step, which is left out; gradients in every backward. 0 where the
        profile was measured or weights are narrow.
        """
        if self.measured_on(device) or not self._roofline(device).autocast:
            return np.zeros(len(work.works))
        moved = CAST * ITEM_BYTES["float32"]
        return work.cast_elements * moved / self._stream_rate(device)

    def block_seconds(self, samples: float, device: Device, busy: int) -> tuple[Vector, Vector]:
        """Forward and backward seconds of every undivided block."""
        from autopar.strategies import WHOLE, Strategies

        work = StageWork(strategies=self.profile.derived(Strategies), split=WHOLE)
        phases = self.phases(work, samples, device, busy)
        nothing = np.zeros(len(self.profile.blocks))
        return phases.forward(nothing), phases.backward(nothing)

    def _roofline(self, device: Device) -> Roofline:
        if device.name not in self._rooflines:
            self._rooflines[device.name] = Roofline(
                device, self.precision, self.constants(device), self.activation_scale
            )
        return self._rooflines[device.name]

    def _measured(
        self, work: StageWork, samples: float, device: Device, busy: int, eager: bool
    ) -> Phases:
        """Measured curves.

        A divided block takes as long as with the part of the samples that its FLOPs are: what an
        op costs whatever its size is not divided.
        """
        measurement = self.profile.measurement
        assert measurement is not None  # measured_on says so
        slowdown = self.slowdown(device, busy)
        own = measurement.eager_at(samples) if eager else (1.0, 1.0)
        missing = any(b.signature not in measurement.curves for b in self.profile.blocks)
        known: dict[tuple[str, float], tuple[float, float]] = {}
        rest = self._untimed(work, samples, device) if missing else None
        forward, backward = [], []
        for index, block in enumerate(self.profile.blocks):
            curve = measurement.curves.get(block.signature)
            if curve is not None:
                key = (block.signature, work.works[index].forward_flop_share)
                if key not in known:
                    part = samples * key[1]
                    factor = slowdown * measurement.composition_at(part)
                    seconds = curve.at(part)
                    known[key] = (seconds[0] * factor * own[0], seconds[1] * factor * own[1])
                forward.append(known[key][0])
                backward.append(known[key][1])
            else:
                assert rest is not None  # made when a curve is missing
                factor = slowdown * measurement.composition_at(samples)
                forward.append(float(rest.forward_device[index]) * factor)
                backward.append(float(rest.backward_device[index]) * factor)
        nothing = np.zeros(len(forward))
        return Phases(
            forward_device=np.array(forward),
            backward_device=np.array(backward),
            forward_host=nothing,
            backward_host=nothing,
            weight_share=np.full(len(forward), k.MEASURED_WEIGHT_SHARE.value),
            selective_share=np.array([_stream_share(w) for w in work.works]),
            constants=self.constants(device),
        )

    def _untimed(self, work: StageWork, samples: float, device: Device) -> Phases:
        """Roofline of blocks that were too large to time; the profile said so.

        Raises:
            InputError: The device has no peak.
        """
        if self.precision not in device.peak_flop_per_s:
            timed = self.profile.measurement.curves if self.profile.measurement else {}
            block = next(b for b in self.profile.blocks if b.signature not in timed)
            raise InputError(
                f"block '{block.name}' was not timed and {device.name} has no "
                f"{self.precision} peak to price it by",
                hint="measure the cluster again with `autopar profile --cluster local`",
            )
        return self._roofline(device).phases(work, samples)

    def optimizer_seconds_per_element(
        self, device: Device, busy: int, offload: bool = False
    ) -> float:
        """Optimizer step and gradient clearing, per parameter element that a rank updates.

        Without a measurement: a streaming kernel that reads gradient, weight and state and writes
        weight and state. With offload, as the executor does it, one after the other: the gradient
        goes down to the host; the host reads it, and reads and writes the float32 weight and the
        state; that weight comes up, which the narrow one is cast from.
        """
        sizes = self.sizes
        if offload:
            link = (sizes.gradient + sizes.updated) / k.HOST_LINK_BYTES_PER_S.value
            streamed = sizes.gradient + 2 * sizes.updated + 2 * (sizes.state - sizes.master)
            return link + streamed / k.HOST_MEMORY_BYTES_PER_S.value
        moved = sizes.gradient + 2 * sizes.weight + 2 * sizes.state
        measurement = self.profile.measurement
        if measurement is not None and self.measured_on(device):
            clearing = measurement.zero_grad_s / max(self.profile.parameter_bytes, 1)
            per_byte = measurement.optimizer_s_per_byte + clearing
            return per_byte * _item_bytes(self.profile) * self.slowdown(device, busy)
        return moved / self._stream_rate(device)

    def accumulate_seconds_per_element(self, device: Device, busy: int) -> float:
        """Adding a later microbatch's gradient to the one that is there, per element.

        Without a measurement: a streaming kernel that reads two gradients and writes one.
        """
        measurement = self.profile.measurement
        if measurement is not None and self.measured_on(device):
            per_byte = measurement.accumulate_s_per_byte
            return per_byte * _item_bytes(self.profile) * self.slowdown(device, busy)
        return 3 * self.sizes.gradient / self._stream_rate(device)

    def _stream_rate(self, device: Device) -> float:
        return device.memory_bytes_per_s * self.constants(device).memory_efficiency

    def checkpoint_seconds(
        self, work: StageWork, device: Device, busy: int
    ) -> tuple[Vector, Vector]:
        """Cost per block of recomputing it besides running it again; 0 when not measured.

        Returns:
            Of selective and of full recompute.
        """
        measurement = self.profile.measurement
        if measurement is None or not self.measured_on(device):
            nothing = np.zeros(len(work.profile.blocks))
            return nothing, nothing
        ops = np.array([b.stop_op - b.first_op for b in work.profile.blocks], dtype=float)
        selective = measurement.selective_s + measurement.selective_s_per_op * ops
        full = measurement.checkpoint_s + measurement.checkpoint_s_per_op * ops
        for i, block in enumerate(work.profile.blocks):
            full[i], selective[i] = measurement.again.get(block.signature, (full[i], selective[i]))
        slowdown = self.slowdown(device, busy)
        return np.asarray(selective * slowdown), np.asarray(full * slowdown)


def _stream_share(work: BlockWork) -> float:
    """Part of a block's forward that is not products, by bytes over bytes and FLOPs."""
    return k.MEASURED_SELECTIVE_SHARE.value if work.matmuls or work.attention else 1.0


def _item_bytes(profile: GraphProfile) -> int:
    count, size = profile.parameter_count, profile.parameter_bytes
    return round(size / count) if count else 4


def interpolate(table: dict[int, float], busy: float) -> float:
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
