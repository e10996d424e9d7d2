"""Constants assumed where nothing was measured; each is named in the prices it touches."""

from __future__ import annotations

from dataclasses import dataclass


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


HOST_LINK_BYTES_PER_S = Constant(
    value=20e9,
    text="bytes per second between device and host for offloaded optimizer state",
    source="assumed; PCIe 4.0 x16 pinned copies reach 20-25 GB/s of 32",
)
HOST_MEMORY_BYTES_PER_S = Constant(
    value=20e9,
    text="host memory bytes per second for the offloaded optimizer of one device",
    source="assumed; a two-socket host streams 200-400 GB/s for 8 devices",
)
MEASURED_WEIGHT_SHARE = Constant(
    value=0.5,
    text="part of a measured backward that only weight gradients need",
    source="assumed; a product's two gradients have equal FLOPs",
)
MEASURED_SELECTIVE_SHARE = Constant(
    value=0.3,
    text="part of a measured forward that selective recompute does again",
    source="assumed; elementwise ops and norms of a transformer layer",
)
BACKWARD_KERNELS = Constant(
    value=2.0,
    text="backward kernels per forward kernel",
    source="assumed; gradients to input and weight",
)
ANALYTIC_SPREAD = Constant(
    value=0.35,
    text="relative range of a computed time on a device with published runs",
    source="nine of ten published runs with fused attention lie within it through their graphs "
    "(scripts/validate_graph steps), whatever software ran them",
)
UNKNOWN_SPREAD = Constant(
    value=0.55,
    text="relative range of a computed time on a device without published runs",
    source="90 % quantile of errors on published runs of unseen devices",
)
MEASURED_SPREAD_FLOOR = Constant(
    value=0.05,
    text="smallest relative range of a time composed of measured parts",
    source="spread between runs of one plan on one host, 3-9 %",
)
MIN_TRANSFER_S = 1e-9
"""A transfer between ranks is never free, so that it orders producer before consumer."""
TIED_SHAPES = 8
"""Shapes of groups that hold copies of a tied parameter which are looked at; equal machines
repeat them."""
