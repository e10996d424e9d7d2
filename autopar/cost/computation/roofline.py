"""Device and host seconds of blocks from their ops, by the calibrated primitives."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from autopar.calibration import Constants
from autopar.calibration.kernels import (
    BACKWARD_FLASH,
    cast_seconds,
    flash_seconds,
    gemm_seconds,
    host_seconds,
    phase_seconds,
)
from autopar.calibration.table import clock_share, device_class
from autopar.cluster import Device
from autopar.cost import constants as k
from autopar.cost.states import ITEM_BYTES
from autopar.cost.work import StageWork, Vector
from autopar.graph import Amount
from autopar.strategies import BlockWork


@dataclass(frozen=True, slots=True, kw_only=True)
class Phases:
    """Seconds of compute of every block for one microbatch.

    Attributes:
        forward_device: Device seconds forward.
        backward_device: Device seconds backward.
        forward_host: Host seconds of launching them.
        backward_host: The same backward.
        weight_share: Part of backward that only weight gradients need.
        selective_share: Part of forward that selective recompute does again.
        constants: Join device and host time.
    """

    forward_device: Vector
    backward_device: Vector
    forward_host: Vector
    backward_host: Vector
    weight_share: Vector
    selective_share: Vector
    constants: Constants

    def at(self, places: npt.NDArray[np.intp]) -> Phases:
        """Of some blocks."""
        return self._each(lambda values: values[..., places])

    def take(self, rows: Sequence[int]) -> Phases:
        """Of some microbatch sizes, where there are several; host times depend on none."""
        return self._each(lambda values: values[rows] if values.ndim > 1 else values)

    def _each(self, change: Callable[[Vector], Vector]) -> Phases:
        names = [name for name in self.__slots__ if name != "constants"]
        changed = {name: change(getattr(self, name)) for name in names}
        return Phases(**changed, constants=self.constants)

    def forward(self, collective_s: Vector) -> Vector:
        """Forward with collectives between its ops."""
        return phase_seconds(self.constants, self.forward_device + collective_s, self.forward_host)

    def backward(self, collective_s: Vector) -> Vector:
        """Backward with collectives between its ops."""
        return phase_seconds(
            self.constants, self.backward_device + collective_s, self.backward_host
        )


AUTOCAST = ("bfloat16", "float16", "float8")
"""Precisions that a float32 model reaches by autocast."""


class Roofline:
    """Prices blocks on one kind of device.

    Args:
        device: Peaks, bandwidth.
        precision: Compute dtype, one the device has a peak for.
        constants: Of the device.
        activation_scale: Stored activation bytes per profiled byte. Half of them says that a
            float32 model runs under autocast.
    """

    def __init__(
        self, device: Device, precision: str, constants: Constants, activation_scale: float
    ) -> None:
        self.device = device
        self.constants = constants
        self.scale = activation_scale
        self.autocast = precision in AUTOCAST and activation_scale < 1
        self.item_bytes = float(ITEM_BYTES[precision])
        peak = device.peak_flop_per_s[precision] * _clock(device, precision)
        self.peak = peak * (constants.fp8_efficiency if precision == "float8" else 1.0)
        self.casts = precision == "float8"
        half = device.peak_flop_per_s.get("bfloat16", 0.0) * _clock(device, "bfloat16")
        self.attention_peak = half if precision == "float8" and half else peak
        self.bytes_per_s = device.memory_bytes_per_s * constants.memory_efficiency
        on_host = device.kind == "cpu"
        self.launch_s = device.launch_s if on_host else constants.launch_s
        self.multiprocessors = float(device.multiprocessors or 1)

    def phases(self, work: StageWork, samples: float | Vector) -> Phases:
        """Seconds of every block; equal ones are priced once.

        Args:
            work: The blocks as divided.
            samples: Microbatch size, or a column of several: times are ``[size, block]`` then.
        """
        (phases,) = self.many_phases([work], samples)
        return phases.at(work.places)

    def many_phases(self, works: Sequence[StageWork], samples: float | Vector) -> list[Phases]:
        """Seconds of the different blocks of several divisions, priced together."""
        parts = [work.unique for work in works]
        tp = [work.split.tp for work in works for _ in work.unique]
        rows = self._rows(parts, samples, np.array(tp, dtype=float))
        ends = np.cumsum([0, *map(len, parts)]).tolist()
        return [
            Phases(
                **{name: values[..., a:b] for name, values in rows.items()},
                constants=self.constants,
            )
            for a, b in itertools.pairwise(ends)
        ]

    def least_sample_seconds(self, work: StageWork) -> float:
        """Products and attention of one more sample at the efficiency of the largest ones.

        Dividing a product over ranks leaves each its part of ``m n k`` at least, and nothing
        takes less than ``2 m n k`` at that rate; see :func:`gemm_seconds`.
        """
        c, products, flash = self.constants, 0.0, 0.0
        for block in work.works:
            for p in block.matmuls:
                rows = p.m.per_sample * p.batch.fixed + p.m.fixed * p.batch.per_sample
                products += 2 * rows * p.n * p.k
            flash += sum(call.flop.per_sample for call in block.attention)
        least = 3 * products / (self.peak * c.gemm_efficiency)
        forward = float(flash_seconds(c, np.asarray(flash), self.attention_peak))
        return least * min(1.0, c.misaligned) + (1 + BACKWARD_FLASH) * forward

    def _rows(
        self, parts: Sequence[Sequence[BlockWork]], samples: float | Vector, tp: Vector
    ) -> dict[str, Vector]:
        c, blocks = self.constants, [block for part in parts for block in part]
        matmul_f, matmul_d, matmul_w = self._products(parts, samples)
        matmul_b = matmul_d + matmul_w
        attention = _at([Amount.total([a.flop for a in b.attention]) for b in blocks], samples)
        flash = flash_seconds(c, attention, self.attention_peak)
        stream_f, stream_b = self._streams(blocks, samples)
        forward_device = matmul_f + flash + stream_f
        backward_device = matmul_b + BACKWARD_FLASH * flash + stream_b
        count = [b.autocast_kernels if self.autocast else b.kernels for b in blocks]
        kernels = np.array(count, dtype=float)
        launches = host_seconds(c, kernels, tp)
        launches = launches * (self.launch_s / c.launch_s)
        return {
            "forward_device": forward_device,
            "backward_device": backward_device,
            "forward_host": launches,
            "backward_host": launches * k.BACKWARD_KERNELS.value,
            "weight_share": _ratio(matmul_w, backward_device),
            "selective_share": _ratio(stream_f, forward_device),  # products and attention are kept
        }

    def _streams(
        self, blocks: Sequence[BlockWork], samples: float | Vector
    ) -> tuple[Vector, Vector]:
        """Seconds of what memory-bound ops move, forward and backward."""
        rate = self.bytes_per_s / self.constants.stream_bytes
        if self.autocast:
            forward = _at([b.autocast_forward_bytes for b in blocks], samples)
            return forward / rate, _at([b.autocast_backward_bytes for b in blocks], samples) / rate
        scale = self.scale / rate
        forward = _at([b.forward_bytes for b in blocks], samples)
        return forward * scale, _at([b.backward_bytes for b in blocks], samples) * scale

    def _products(
        self, parts: Sequence[Sequence[BlockWork]], samples: float | Vector
    ) -> tuple[Vector, Vector, Vector]:
        """Forward, input-gradient and weight-gradient seconds of the products of every block."""
        products = [p for part in parts for block in part for p in block.matmuls]
        m = _at([p.m for p in products], samples)
        n = np.broadcast_to(np.array([p.n for p in products]), m.shape)
        kk = np.broadcast_to(np.array([p.k for p in products]), m.shape)
        batch = _at([p.batch for p in products], samples)
        three = self._gemm(np.stack([m, m, n]), np.stack([n, kk, kk]), np.stack([kk, n, m]))
        three = three * batch
        if self.casts:
            three[0] += cast_seconds(self.constants, batch * m * kk, self.bytes_per_s)
            three[1] += cast_seconds(self.constants, batch * m * n, self.bytes_per_s)
        sums, first = [], 0
        for part in parts:
            owners = [i for i, block in enumerate(part) for _ in block.matmuls]
            member = np.zeros((len(owners), len(part)))
            member[np.arange(len(owners)), owners] = 1.0
            sums.append(three[..., first : first + len(owners)] @ member)
            first += len(owners)
        forward, data, weight = np.concatenate(sums, axis=-1)
        return forward, data, weight

    def _gemm(self, m: Vector, n: Vector, k_: Vector) -> Vector:
        return gemm_seconds(
            self.constants,
            m,
            n,
            k_,
            item_bytes=self.item_bytes,
            peak_flop_per_s=self.peak,
            memory_bytes_per_s=self.bytes_per_s,
            multiprocessors=self.multiprocessors,
        )


def _at(amounts: Sequence[Amount], samples: float | Vector) -> Vector:
    fixed = np.array([a.fixed for a in amounts], dtype=float)
    return np.asarray(fixed + np.array([a.per_sample for a in amounts]) * samples)


def _clock(device: Device, precision: str) -> float:
    """Part of the boost clock that tensor cores hold; other formats are not held back."""
    return 1.0 if precision == "float32" else held_clock(device)


def held_clock(device: Device) -> float:
    """Part of their boost clock that tensor cores hold: as given, else within the power."""
    if device.clock_share is not None:
        return device.clock_share
    half = device.peak_flop_per_s.get("float16")
    if half is None:
        return 1.0
    return clock_share(device_class(device.name), half, device.power_watt)


def _ratio(part: Vector, whole: Vector) -> Vector:
    return np.divide(part, whole, out=np.zeros_like(part), where=whole > 0)
