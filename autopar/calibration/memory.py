"""Constants of the memory model: meaning, unit, default, source, and the fitted values we ship.

Planner and validation read the same set, see :meth:`MemoryConstants.shipped`. Fitted values rest
on published peaks, see ``docs/validation-memory.md``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cache
from pathlib import Path
from typing import Any

from autopar.core.errors import InputError
from autopar.core.io import read_document, write_document
from autopar.core.units import GIB

SCHEMA = "autopar.memory_calibration"
SCHEMA_VERSION = 1
SHIPPED = Path(__file__).with_name("shipped_memory.json")


@dataclass(frozen=True, slots=True, kw_only=True)
class MemorySpec:
    """One constant of the memory model.

    Attributes:
        name: Attribute of :class:`MemoryConstants`.
        default: Value with no data.
        unit: Unit of the value.
        text: What it is.
        source: Why the default has this value.
        width: Standard deviation of its logarithm before data are seen.
    """

    name: str
    default: float
    unit: str
    text: str
    source: str
    width: float


MEMORY_SPECS: tuple[MemorySpec, ...] = (
    MemorySpec(
        name="allocator_margin",
        default=1.06,
        unit="1",
        text="reserved over allocated bytes: rounding and fragmentation of a caching allocator",
        source="assumed; 2-10 % is what torch.cuda memory statistics of training runs show",
        width=0.05,
    ),
    MemorySpec(
        name="framework_bytes",
        default=1.5 * GIB,
        unit="bytes",
        text="context, libraries and workspaces of a rank that allocator statistics do not count, "
        "on a device of 108 multiprocessors; the driver reserves them per multiprocessor",
        source="assumed; CUDA context 0.3-0.6 GiB, cuBLAS and kernels loaded on first use",
        width=0.5,
    ),
    MemorySpec(
        name="communicator_bytes",
        default=0.4 * GIB,
        unit="bytes",
        text="NCCL buffers of one communicator; a rank has one per parallel dimension and one for "
        "all ranks",
        source="assumed; 16-32 channels with 4-10 MiB of buffers each way",
        width=0.5,
    ),
    MemorySpec(
        name="bucket_bytes",
        default=1.0e9,
        unit="bytes",
        text="one gradient bucket of a sharded optimizer; two are alive",
        source="DeepSpeed's default reduce_bucket_size of 5e8 elements, 2 bytes each",
        width=0.4,
    ),
    MemorySpec(
        name="activation_factor",
        default=1.0,
        unit="1",
        text="kept activations over the bytes that the ops of a block save for backward",
        source="1 by definition: the counts are Korthikanti et al. 2022, section 4",
        width=0.08,
    ),
    MemorySpec(
        name="transient_factor",
        default=1.0,
        unit="1",
        text="working set of the block being computed over its saved tensors and widest output",
        source="1 by definition",
        width=0.3,
    ),
    MemorySpec(
        name="logit_bytes",
        default=8.0,
        unit="bytes",
        text="bytes per logit at a loss that works in place, 16-bit runs; other losses by "
        "``LOSS_FACTORS``",
        source="16-bit logits 2, float32 copy 4 that becomes the gradient, 16-bit gradient 2",
        width=0.25,
    ),
    MemorySpec(
        name="update_share",
        default=0.5,
        unit="1",
        text="part of the lesser of activations and optimizer temporaries that adds to the peak, "
        "though they are not alive at once",
        source="assumed; flat buffers need contiguous memory that freed fragments rarely give",
        width=0.5,
    ),
)
"""All constants, in a fixed order."""
LOSS_FACTORS: Mapping[str, float] = {
    "inplace": 1.0,
    "copied": 1.5,
    "eager": 1.75,
    "float32": 2.0,
    "fused": 0.5,
}
"""Bytes per logit over those of an in-place loss (8): ``torch.nn.functional.cross_entropy`` in
float32 holds 16-bit logits 2, log-softmax 4, gradients of its two ops 4 + 4; of float32 logits
4 + 4 + 4 + 4; a loss that copies holds one float32 tensor more, 4; a fused kernel holds 16-bit
logits and their gradient, 2 + 2."""
REFERENCE_MULTIPROCESSORS = 108.0
"""Multiprocessors of the device that ``framework_bytes`` is stated for (A100)."""

HOST_BYTES = 0.35 * GIB
"""Interpreter, torch and process group of a CPU rank that was not measured: assumed, the resident
set after importing torch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryConstants:
    """One set of constants, see :data:`MEMORY_SPECS` for units and sources.

    Attributes:
        allocator_margin: Reserved over allocated bytes.
        framework_bytes: Context, libraries and workspaces at ``REFERENCE_MULTIPROCESSORS``.
        communicator_bytes: Buffers per communicator.
        bucket_bytes: One gradient bucket.
        activation_factor: Kept activations over the counted ones.
        transient_factor: Working set over the counted one.
        logit_bytes: Per logit, 16-bit runs.
        update_share: Part of the lesser of activations and optimizer temporaries that adds.
        low_factor: Central estimate -> lower end of the range.
        high_factor: Central estimate -> upper end, which decides feasibility.
        unseen_low_factor: ``low_factor`` of frameworks that no fit has seen, such as autopar.
        unseen_high_factor: ``high_factor`` of these.
        margins: Framework generation -> factor on ``allocator_margin``; absent ones are 1.
        fitted_on: What data the values rest on; empty for defaults.
    """

    allocator_margin: float
    framework_bytes: float
    communicator_bytes: float
    bucket_bytes: float
    activation_factor: float
    transient_factor: float
    logit_bytes: float
    update_share: float
    low_factor: float = 0.8
    high_factor: float = 1.2
    unseen_low_factor: float = 0.8
    unseen_high_factor: float = 1.2
    margins: Mapping[str, float] = field(default_factory=dict)
    fitted_on: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def defaults(cls) -> MemoryConstants:
        """The values with no data; the range is the assumed 20 % either way."""
        return cls.of({spec.name: spec.default for spec in MEMORY_SPECS})

    @classmethod
    def of(
        cls, values: Mapping[str, float], margins: Mapping[str, float] | None = None
    ) -> MemoryConstants:
        """From one value per name of :data:`MEMORY_SPECS`, with the assumed range."""
        keywords: dict[str, Any] = dict(values)
        return cls(**keywords, margins=margins or {})

    @classmethod
    def host(cls) -> MemoryConstants:
        """For ranks on CPUs: memory comes from malloc, there is no context and no NCCL.

        The process before the model exists is measured with the host; the range is assumed: up to
        a tenth more than counted.
        """
        plain = {spec.name: spec.default for spec in MEMORY_SPECS}
        held = {"allocator_margin": 1.0, "framework_bytes": HOST_BYTES, "communicator_bytes": 0.0}
        return cls.of({**plain, **held}).with_range(1.0, 1.1)

    @classmethod
    def shipped(cls) -> MemoryConstants:
        """The fitted values that come with autopar."""
        return _shipped()

    def margin(self, framework: str) -> float:
        """Allocator margin of a framework generation; what all have in common when unknown."""
        return self.allocator_margin * self.margins.get(framework, 1.0)

    def with_range(self, low_factor: float, high_factor: float) -> MemoryConstants:
        """The same values with another range."""
        return replace(self, low_factor=low_factor, high_factor=high_factor)

    def unseen(self) -> MemoryConstants:
        """For a framework that no fit has seen: the range is that of families held out whole."""
        return self.with_range(self.unseen_low_factor, self.unseen_high_factor)

    def save(self, path: Path) -> None:
        """Write the file atomically."""
        body = {**asdict(self), "margins": dict(self.margins), "fitted_on": dict(self.fitted_on)}
        write_document(path, SCHEMA, SCHEMA_VERSION, body)

    @classmethod
    def load(cls, path: Path) -> MemoryConstants:
        """Read fitted values.

        Raises:
            InputError: Missing, truncated, of another schema, or a value is not positive.
        """
        data = read_document(path, SCHEMA, SCHEMA_VERSION)
        numbers = [f.name for f in fields(cls) if f.name not in ("margins", "fitted_on")]
        try:
            values: dict[str, Any] = {name: float(data[name]) for name in numbers}
            margins = {str(name): float(value) for name, value in data["margins"].items()}
            constants = cls(**values, margins=margins, fitted_on=dict(data["fitted_on"]))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(
                f"{path}: bad memory calibration: {error}", hint="fit it again"
            ) from error
        for name, value in {**values, **margins}.items():
            if not (value > 0 and math.isfinite(value)):
                raise InputError(f"{path}: {name} is {value}, not positive", hint="fit it again")
        return constants


@cache
def _shipped() -> MemoryConstants:
    return MemoryConstants.load(SHIPPED)
