"""Local training with an outer optimizer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from autopar.sync.base import AbstractCompression, Literature, Payload, SyncGroup, assumed
from autopar.sync.modes.local import LocalSgd


@dataclass(frozen=True)
class DiLoCo(LocalSgd):
    """The mean change of ``period`` local steps is a gradient for Nesterov momentum."""

    period: int = 100

    name: ClassVar[str] = "diloco"
    literature: ClassVar[Literature | None] = Literature(
        multiplier=assumed(0.9, 1.2, 3.0),
        citation="Douillard et al. 2023, DiLoCo (arXiv:2311.08105); Charles et al. 2025, Scaling "
        "Laws for DiLoCo (arXiv:2503.09799)",
        reading="8 workers with 500 local steps do as well as synchronous training of language "
        "models, larger models better; other tasks are unknown: value and ends are guesses",
    )

    def streamed_bytes(
        self, payload: Payload, group: SyncGroup, compression: AbstractCompression
    ) -> float:
        """Change formed (3 passes), momentum and weights read and written (6 passes)."""
        encode = compression.streamed_bytes(payload, group.ranks)
        return (9.0 * payload.size_bytes + encode) / self.period

    def memory_bytes(
        self, payload: Payload, group: SyncGroup, compression: AbstractCompression
    ) -> float:
        """Weights of the last average and outer momentum."""
        return 2.0 * payload.size_bytes + compression.memory_bytes(payload, group.ranks)
