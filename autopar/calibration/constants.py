"""Constants of the step-time model: meaning, unit, default, and how far data may move them.

A constant is the product of a global value and factors for the device's architecture, the device,
the framework generation, and the framework on that device; each is log-normal around 1 with the
stated width. Defaults are the global values of a robust fit to published training runs, see
``scripts/validate_published``; fitted factors come with a :class:`Calibration`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

Scope = Literal["global", "architecture", "device", "framework", "pair"]
"""What a factor belongs to; ``pair`` is one framework on one device."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConstantSpec:
    """One constant.

    Attributes:
        name: Attribute of :class:`Constants`.
        default: Value with no data.
        unit: Unit of the value.
        text: What it is.
        widths: Scope -> standard deviation of the logarithm of its factor.
    """

    name: str
    default: float
    unit: str
    text: str
    widths: Mapping[Scope, float]


def _spec(name: str, default: float, unit: str, text: str, **widths: float) -> ConstantSpec:
    scopes: dict[str, Scope] = {
        "g": "global",
        "a": "architecture",
        "d": "device",
        "f": "framework",
        "x": "pair",
    }
    return ConstantSpec(
        name=name,
        default=default,
        unit=unit,
        text=text,
        widths={scopes[key]: width for key, width in widths.items()},
    )


SPECS: tuple[ConstantSpec, ...] = (
    _spec(
        "gemm_efficiency", 0.845, "1", "part of the dense peak a large matrix product reaches",
        g=0.08, a=0.06, d=0.04, f=0.05,
    ),
    _spec(
        "fp8_efficiency", 0.92, "1", "the same for float8, relative to gemm_efficiency",
        g=0.25, a=0.15, f=0.15,
    ),
    _spec("mx_efficiency", 0.92, "1", "block-scaled float8 relative to per-tensor", g=0.08),
    _spec("fp4_efficiency", 0.68, "1", "4-bit products relative to gemm_efficiency", g=0.25),
    _spec(
        "cast_bytes", 5.2, "bytes",
        "bytes moved to scale and cast an element of an operand of 8 or 4 bits", g=0.4, f=0.3,
    ),
    _spec(
        "tile_elements", 8096.0, "elements",
        "result elements per multiprocessor that a product leaves idle", g=0.7, d=0.3,
    ),
    _spec("contraction_start", 73.0, "elements", "contraction length lost to start-up", g=0.7),
    _spec(
        "wave_share", 0.34, "1", "part of full wave quantisation that is paid", g=0.8, f=0.3,
    ),
    _spec(
        "misaligned", 1.19, "1", "slow-down of a product with a side not divisible by 64", g=0.2,
    ),
    _spec(
        "head_misaligned", 12.4, "1",
        "slow-down of unfused attention with head size not divisible by 8", g=0.5,
    ),
    _spec(
        "whole_passes", 18.5, "passes",
        "reads and writes of a layer's token tensors outside tensor parallel regions, forward",
        g=0.3, f=0.4,
    ),
    _spec(
        "split_passes", 11.8, "passes",
        "the same inside tensor parallel regions, in units of a quarter of the ffn", g=0.3, f=0.4,
    ),
    _spec(
        "stream_bytes", 1.0, "1",
        "bytes that memory-bound ops move over the bytes of their operands (fusion, casts)",
        g=0.3, f=0.3,
    ),
    _spec(
        "memory_efficiency", 0.78, "1", "part of the memory bandwidth that streaming reaches",
        g=0.1, d=0.1,
    ),
    _spec(
        "score_bytes", 14.0, "bytes", "bytes per score of unfused attention, forward",
        g=0.4, f=0.3,
    ),
    _spec(
        "score_fallback", 1.56, "1", "score bytes when the fused softmax refuses the shape", g=0.4,
    ),
    _spec(
        "flash_efficiency", 0.40, "1", "part of the 16-bit peak that fused attention reaches",
        g=0.2, a=0.2, d=0.15, f=0.2,
    ),
    _spec(
        "logit_bytes", 78.0, "bytes", "bytes per logit of the loss, forward and backward",
        g=0.5, f=0.5,
    ),
    _spec(
        "launch_s", 2.2e-5, "s", "host time per kernel launch of an eager framework",
        g=0.1, a=0.1, d=0.1, f=0.15,
    ),
    _spec("launch_tp", 0.087, "1", "growth of launch time per doubling of tp", g=0.7, f=0.7),
    _spec("phase_norm", 2.9, "1", "p of the norm that joins device and host time", g=0.3),
    _spec(
        "collective_latency_s", 6.0e-5, "s", "latency of a collective inside a layer",
        g=0.5, d=0.4, f=0.4,
    ),
    _spec(
        "intra_share", 0.61, "1", "part of the link rate inside a node that collectives reach",
        g=0.2, d=0.3, f=0.3,
    ),
    _spec(
        "inter_share", 0.87, "1", "part of the node's network rate that collectives reach",
        g=0.3, d=0.4, f=0.4,
    ),
    _spec("tp_exposed", 0.99, "1", "exposed part of tensor parallel collectives", g=0.05, f=0.25),
    _spec(
        "tp_overlapped", 0.7, "1",
        "exposed part of tensor parallel collectives that run beside their products", g=0.4,
    ),
    _spec(
        "message_exposed", 0.53, "1", "exposed part of pipeline messages in steady state",
        g=0.6, f=0.5,
    ),
    _spec(
        "message_share", 1.15, "1", "part of the link rate that pipeline messages reach",
        g=0.4, f=0.4,
    ),
    _spec(
        "sync_exposed", 1.0, "1",
        "time of gradient synchronisation after the backward pass over its ring time",
        g=0.3, f=0.5,
    ),
    _spec(
        "sync_overlapped", 0.5, "1",
        "exposed part of gradient synchronisation that runs beside the backward pass", g=0.5,
    ),
    _spec(
        "gather_exposed", 0.66, "1",
        "part of the shorter of compute and ZeRO-3 gathers that is exposed", g=0.5, f=1.0,
    ),
    _spec(
        "zero_latency_s", 4.8e-4, "s", "latency per rank of sharded-optimizer gathers",
        g=1.0, f=1.0,
    ),
    _spec(
        "optimizer_bytes", 24.0, "bytes", "bytes that the optimizer moves per parameter",
        g=0.3, f=0.4,
    ),
    _spec(
        "step_s", 0.010, "s", "fixed time per step: data, clipping, launches of a fused optimizer",
        g=0.4, f=1.0,
    ),
    _spec(
        "expert_exposed", 0.90, "1", "exposed part of expert all-to-alls", g=0.6, f=0.5,
    ),
    _spec(
        "expert_slowdown", 1.15, "1", "imbalance of expert products", g=0.3, d=0.2, f=0.3,
    ),
    _spec(
        "expert_passes", 8.0, "passes",
        "reads and writes of routed tokens: permutation, quantisation, activation, forward",
        g=0.4, f=0.3,
    ),
    _spec(
        "straggler", 0.057, "1", "slow-down of a run on many nodes, times 1 - 1 / nodes",
        g=0.2, f=0.2,
    ),
    _spec(
        "microbatch_s", 4.0e-4, "s", "hand-shake per microbatch and pipeline stage", g=1.0, f=1.0,
    ),
    _spec("overall", 1.0, "1", "clock, jitter, what nothing else says", d=0.05, f=0.08, x=0.08),
)  # fmt: skip
"""All constants, in a fixed order.

Three defaults do not come from the fit. ``tp_overlapped``: four pairs of torchtitan's runs with
and without async tensor parallelism (docs/validation.md, tt) save 16 to 38 % of the time that the
default constants give their collectives, so 0.62 to 0.84 of it is exposed. ``sync_overlapped`` 0.5
and ``step_s`` 10 ms were assumed when the terms were added; the fit to all rows moves them to 0.56
and 12 ms. ``cast_bytes`` is the fit's; two reads and a write of both layouts would be 6.
"""

NAMES = tuple(spec.name for spec in SPECS)
INDEX = {name: i for i, name in enumerate(NAMES)}


class Constants:
    """One resolved set of constants; attributes are floats, or arrays with one entry per row.

    Args:
        values: Name -> value, all of :data:`NAMES`.
        notes: What a user should know about where they come from.
    """

    def __init__(
        self,
        values: Mapping[str, float | npt.NDArray[np.float64]],
        notes: tuple[str, ...] = (),
    ) -> None:
        self._values = dict(values)
        self.notes = notes
        self.__dict__.update(values)  # formulas read them often; other names are looked for below

    def __getattr__(self, name: str) -> float:
        """The value of a constant; arrays are typed as floats, formulas serve both."""
        try:
            return self._values[name]  # type: ignore[return-value]
        except KeyError:
            raise AttributeError(name) from None

    @classmethod
    def defaults(cls) -> Constants:
        """The global values."""
        return cls({spec.name: spec.default for spec in SPECS})

    @classmethod
    def of_logs(cls, logs: npt.NDArray[np.float64]) -> Constants:
        """From logarithms ``[..., constant]`` in the order of :data:`NAMES`."""
        values = np.exp(logs)
        return cls({name: values[..., i] for name, i in INDEX.items()})
