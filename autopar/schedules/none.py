"""No pipeline: every microbatch forward, then backward, on one pipeline rank."""

from __future__ import annotations

from typing import ClassVar, final

from autopar.schedules.base import AbstractSchedule, Action


@final
class NoPipeline(AbstractSchedule):
    """Gradient accumulation over microbatches; one microbatch is in flight."""

    name: ClassVar[str] = "none"

    def actions(self, ranks: int, stages: int, microbatches: int) -> list[list[Action]]:
        """Forward and backward of each microbatch in turn."""
        order = []
        for microbatch in range(microbatches):
            order += [Action("forward", s, microbatch) for s in range(stages)]
            order += [Action("backward", s, microbatch) for s in reversed(range(stages))]
        return [order]

    def rank_peaks(
        self, rank: int, ranks: int, stages: int, microbatches: int
    ) -> tuple[tuple[int, ...], ...]:
        """One microbatch, in every stage."""
        return ((1,) * stages,)

    def check(self, ranks: int, stages: int, microbatches: int) -> str | None:
        """Only one pipeline rank."""
        return None if ranks == 1 else f"schedule 'none' runs on 1 pipeline rank, not on {ranks}"


NONE = NoPipeline()
