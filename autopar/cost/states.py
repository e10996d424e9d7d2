"""Bytes that a parameter costs: weight, gradient, optimizer state, and what sharding leaves."""

from __future__ import annotations

from dataclasses import dataclass

from autopar.cluster import Cluster
from autopar.core.errors import InputError

ITEM_BYTES = {
    "float64": 8,
    "float32": 4,
    "tf32": 4,
    "bfloat16": 2,
    "float16": 2,
    "float8": 2,
}
"""Bytes of a weight or activation element; float8 products read 16-bit tensors."""

MASTER_BYTES = 4
"""Narrow formats accumulate gradients and update weights in float32 (Micikevicius et al. 2018)."""


def auto_precision(cluster: Cluster) -> str:
    """bfloat16, else float16, where every accelerator has a peak for it; float32 elsewhere.

    What people train in on such devices. A measured cluster runs what it was measured in: float32.
    """
    devices = [group.machine.device for group in cluster.groups]
    if cluster.measured or any(device.kind == "cpu" for device in devices):
        return "float32"
    for name in ("bfloat16", "float16"):
        if all(name in device.peak_flop_per_s for device in devices):
            return name
    return "float32"


MOMENTS = 2
"""State tensors per parameter from which an optimizer counts as one of Adam's kind."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ParameterBytes:
    """Bytes per parameter element.

    With a 16-bit or narrower precision a rank keeps a float32 gradient and a float32 master copy
    beside the weight, as Megatron-LM and FSDP with mixed precision do.

    Attributes:
        weight: The copy that forward and backward read.
        gradient: The accumulated gradient, also what synchronisation sends.
        state: Optimizer state and master copy.
        master: The master copy's part of it, 0 where the weight itself is wide. It stays on the
            device when the rest of the state does not.
        update: Temporaries while all parameters are updated at once: torch's Adam takes the root
            of the second moment in a tensor of its own.
    """

    weight: float
    gradient: float
    state: float
    update: float = 0.0
    master: float = 0.0

    @property
    def updated(self) -> float:
        """The copy that the optimizer updates."""
        return self.master or self.weight

    @classmethod
    def of(cls, precision: str, state_ratio: float) -> ParameterBytes:
        """Bytes in a precision.

        Args:
            precision: A key of :data:`ITEM_BYTES`.
            state_ratio: Optimizer state bytes over weight bytes when all is in one format.

        Raises:
            InputError: Unknown precision.
        """
        if precision not in ITEM_BYTES:
            raise InputError(
                f"unknown precision '{precision}'", hint="known: " + ", ".join(sorted(ITEM_BYTES))
            )
        item = ITEM_BYTES[precision]
        update = max(item, MASTER_BYTES) if state_ratio >= MOMENTS else 0.0
        if item >= MASTER_BYTES:
            return cls(weight=item, gradient=item, state=item * state_ratio, update=update)
        state = MASTER_BYTES * (1 + state_ratio)
        return cls(
            weight=item, gradient=MASTER_BYTES, state=state, update=update, master=MASTER_BYTES
        )

    def held(self, zero: int, ranks: int, offload: bool) -> tuple[float, float, float]:
        """Weight, gradient and state bytes on one rank (Rajbhandari et al. 2020, figure 1).

        Args:
            zero: 1 shares out states, 2 gradients too, 3 weights too.
            ranks: Ranks that share.
            offload: States live in host memory, but for the master copy of the weights.
        """
        weight = self.weight / (ranks if zero >= 3 else 1)
        gradient = self.gradient / (ranks if zero >= 2 else 1)
        kept = self.master if offload else self.state
        return weight, gradient, kept / (ranks if zero >= 1 else 1)
