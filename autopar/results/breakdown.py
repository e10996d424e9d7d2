"""Where a step's seconds and a rank's bytes go; the parts sum to the whole."""

from __future__ import annotations

from dataclasses import dataclass, fields

from autopar.core.io import field_values


@dataclass(frozen=True, slots=True, kw_only=True)
class CostBreakdown:
    """Seconds of one step on the rank that ends last.

    Attributes:
        forward_s: Forward compute.
        backward_s: Backward compute, without recompute.
        recompute_s: Forward computed again.
        collective_s: Exposed tensor, context, expert and ZeRO-3 collectives between ops.
        pipeline_communication_s: Waiting for activations or gradients that were under way.
        gradient_sync_s: Exposed gradient synchronisation.
        bubble_s: Idle for lack of work: pipeline fill and drain, waiting for other ranks.
        optimizer_s: Clipping, optimizer step, clearing gradients.
        other_s: The rest: data, framework overhead.
    """

    forward_s: float = 0.0
    backward_s: float = 0.0
    recompute_s: float = 0.0
    collective_s: float = 0.0
    pipeline_communication_s: float = 0.0
    gradient_sync_s: float = 0.0
    bubble_s: float = 0.0
    optimizer_s: float = 0.0
    other_s: float = 0.0

    @property
    def total_s(self) -> float:
        """Step time."""
        return float(sum(field_values(self).values()))

    def to_dict(self) -> dict[str, float]:
        """Parts and ``total_s``."""
        return {**field_values(self), "total_s": self.total_s}

    @classmethod
    def from_dict(cls, data: dict[str, float]) -> CostBreakdown:
        """Inverse of :meth:`to_dict`; a part that an older file lacks is 0."""
        return cls(**{f.name: float(data.get(f.name, 0.0)) for f in fields(cls)})


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryBreakdown:
    """Bytes on one rank at its peak.

    Attributes:
        parameters_bytes: Weights and buffers.
        gradients_bytes: Gradients.
        optimizer_bytes: Optimizer state.
        activations_bytes: Activations kept for backward at the peak, batch inputs included.
        transient_bytes: The block in work and its gradients, the loss, optimizer temporaries.
        communication_bytes: Buckets, send and receive buffers.
        framework_bytes: Interpreter, libraries, context, process group.
        allocator_bytes: What the allocator holds beyond what it serves.
    """

    parameters_bytes: float = 0.0
    gradients_bytes: float = 0.0
    optimizer_bytes: float = 0.0
    activations_bytes: float = 0.0
    transient_bytes: float = 0.0
    communication_bytes: float = 0.0
    framework_bytes: float = 0.0
    allocator_bytes: float = 0.0

    @property
    def total_bytes(self) -> float:
        """Peak."""
        return float(sum(field_values(self).values()))

    def to_dict(self) -> dict[str, float]:
        """Parts and ``total_bytes``."""
        return {**field_values(self), "total_bytes": self.total_bytes}

    @classmethod
    def from_dict(cls, data: dict[str, float]) -> MemoryBreakdown:
        """Inverse of :meth:`to_dict`; a part that an older file lacks is 0."""
        return cls(**{f.name: float(data.get(f.name, 0.0)) for f in fields(cls)})
