"""Constants assumed where nothing was measured; each is named in the prices it touches."""

from __future__ import annotations

from dataclasses import dataclass

from autopar.core.units import GIB


@dataclass(frozen=True, slots=True, kw_only=True)
class Constant:
    """An assumed figure.

    Attributes:
        value: In the unit the text names.
        text: What it is, with the unit.
        source: Why this value.
    """

    value: float
    text: str
    source: str

    @property
    def note(self) -> str:
        """One line for ``PlanPrice.assumptions``."""
        return f"{self.text}: {self.value:g} ({self.source})"


MATMUL_EFFICIENCY = Constant(
    value=0.75,
    text="fraction of the dense peak that a large matrix product reaches",
    source="assumed; cuBLAS reaches 0.7-0.8 on A100/H100",
)
MATMUL_RAMP_S = Constant(
    value=5e-6,
    text="seconds a matrix product loses to fill and drain the device",
    source="assumed; one wave of tiles",
)
MEMORY_EFFICIENCY = Constant(
    value=0.8,
    text="fraction of the memory bandwidth that a streaming kernel reaches",
    source="assumed; STREAM-like kernels reach 0.8-0.9",
)
BACKWARD_KERNELS = Constant(
    value=2.0,
    text="backward kernels per forward kernel",
    source="assumed; gradients to input and weight",
)
ANALYTIC_SPREAD = Constant(
    value=0.3,
    text="relative range of a time that was computed, not measured",
    source="zero-shot error of calibrated-free closed forms on published runs, 15-40 %",
)
MEASURED_SPREAD_FLOOR = Constant(
    value=0.05,
    text="smallest relative range of a time composed of measured parts",
    source="spread between runs of one plan on one host, 3-9 %",
)
MEMORY_MARGIN = Constant(
    value=0.10,
    text="allocator margin on top of the predicted peak",
    source="assumed; fragmentation and rounding of caching allocators",
)
GPU_FRAMEWORK_BYTES = Constant(
    value=1.5 * GIB,
    text="bytes of context, libraries and communicator on an accelerator",
    source="assumed; CUDA context, cuBLAS workspace and NCCL buffers",
)
CPU_FRAMEWORK_BYTES = Constant(
    value=0.35 * GIB,
    text="bytes of interpreter, torch and process group on a CPU rank",
    source="assumed; resident set after importing torch",
)
TRANSIENT_COPIES = Constant(
    value=2.0,
    text="copies of the largest op output alive while it runs (value and gradient)",
    source="assumed; backward holds an output's gradient beside its input's",
)
MIN_TRANSFER_S = 1e-9
"""A transfer between ranks is never free, so that it orders producer before consumer."""
