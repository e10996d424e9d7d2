"""GPipe: all forwards, then all backwards (Huang et al. 2019, arXiv 1811.06965)."""

from __future__ import annotations

from typing import ClassVar, final

from autopar.schedules.base import AbstractSchedule, Action


@final
class GPipe(AbstractSchedule):
    """Keeps the activations of all microbatches; the fewest switches of direction."""

    name: ClassVar[str] = "gpipe"

    def actions(self, ranks: int, stages: int, microbatches: int) -> list[list[Action]]:
        """One stage per rank: forwards 0..m-1, then backwards 0..m-1."""
        return [
            [Action("forward", rank, i) for i in range(microbatches)]
            + [Action("backward", rank, i) for i in range(microbatches)]
            for rank in range(ranks)
        ]

    def rank_peaks(
        self, rank: int, ranks: int, stages: int, microbatches: int
    ) -> tuple[tuple[int, ...], ...]:
        """Every microbatch, on every rank."""
        return ((microbatches,),)

    def check(self, ranks: int, stages: int, microbatches: int) -> str | None:
        """One stage per rank."""
        if stages != ranks:
            return f"gpipe runs one stage per pipeline rank, not {stages} stages on {ranks} ranks"
        return None


GPIPE = GPipe()
