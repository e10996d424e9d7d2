"""1F1B without weight stashing (PipeDream-Flush; Narayanan et al. 2021, arXiv 2104.04473)."""

from __future__ import annotations

from typing import ClassVar, final

from autopar.schedules.base import AbstractSchedule, Action


@final
class OneForwardOneBackward(AbstractSchedule):
    """Rank ``r`` of ``p`` keeps at most ``min(m, p - r)`` microbatches."""

    name: ClassVar[str] = "1f1b"

    def actions(self, ranks: int, stages: int, microbatches: int) -> list[list[Action]]:
        """Warm-up of ``min(m, p - r - 1)`` forwards, then pairs, then the rest backwards."""
        return [_rank_actions(rank, ranks, microbatches) for rank in range(ranks)]

    def rank_peaks(
        self, rank: int, ranks: int, stages: int, microbatches: int
    ) -> tuple[tuple[int, ...], ...]:
        """Rank ``r`` keeps ``min(m, p - r)``."""
        return ((min(microbatches, ranks - rank),),)

    def check(self, ranks: int, stages: int, microbatches: int) -> str | None:
        """One stage per rank."""
        if stages != ranks:
            return f"1f1b runs one stage per pipeline rank, not {stages} stages on {ranks} ranks"
        return None


def _rank_actions(rank: int, ranks: int, microbatches: int) -> list[Action]:
    warmup = min(microbatches, ranks - rank - 1)
    order = [Action("forward", rank, i) for i in range(warmup)]
    for i in range(microbatches - warmup):
        order += [Action("forward", rank, warmup + i), Action("backward", rank, i)]
    drain = range(microbatches - warmup, microbatches)
    return order + [Action("backward", rank, i) for i in drain]


ONE_F_ONE_B = OneForwardOneBackward()
