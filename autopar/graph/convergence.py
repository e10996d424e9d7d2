"""What probe runs found out about the steps a task needs: a fact of the task, not of a machine."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from autopar.core.estimate import Estimate


@dataclass(frozen=True, slots=True, kw_only=True)
class Convergence:
    """Steps to the same loss, over those of exact synchronisation, at a number of ranks.

    Attributes:
        ranks: Ranks that synchronised.
        global_batch: Samples per step over all of them.
        target_loss: The loss, smoothed.
        seeds: Runs of each mode.
        multipliers: Canonical sync name -> steps over the steps of ``all_reduce``, for modes that
            change the mathematics.
        missed: Canonical sync name -> why it did not reach the loss.
    """

    ranks: int
    global_batch: int
    target_loss: float
    seeds: int
    multipliers: dict[str, Estimate]
    missed: dict[str, str] = field(default_factory=dict)

    @property
    def words(self) -> str:
        """How it was measured, for people."""
        runs = "one seed" if self.seeds == 1 else f"{self.seeds} seeds"
        return (
            f"{runs} on {self.ranks} ranks, global batch {self.global_batch}, "
            f"to loss {self.target_loss:.4g}"
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "ranks": self.ranks,
            "global_batch": self.global_batch,
            "target_loss": self.target_loss,
            "seeds": self.seeds,
            "multipliers": {name: e.to_dict() for name, e in self.multipliers.items()},
            "missed": dict(self.missed),
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Convergence:
        """Inverse of :meth:`to_dict`."""
        found = {name: Estimate.from_dict(e) for name, e in data["multipliers"].items()}
        return cls(**{**data, "multipliers": found})
