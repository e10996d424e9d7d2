"""Looped breadth-first schedule (Lamy-Poirier 2023, arXiv 2211.05953; torch ScheduleLoopedBFS)."""

from __future__ import annotations

from typing import ClassVar, final

from autopar.schedules.base import AbstractSchedule, Action


@final
class LoopedBFS(AbstractSchedule):
    """All microbatches through one stage of the rank, then through the next one."""

    name: ClassVar[str] = "looped_bfs"
    interleaves: ClassVar[bool] = True

    def actions(self, ranks: int, stages: int, microbatches: int) -> list[list[Action]]:
        """Forwards stage by stage, then backwards stage by stage in reverse."""
        lists = []
        for rank in range(ranks):
            mine = self.stages_of(rank, ranks, stages)
            order = [Action("forward", s, i) for s in mine for i in range(microbatches)]
            order += [
                Action("backward", s, i) for s in reversed(mine) for i in range(microbatches)
            ]
            lists.append(order)
        return lists

    def rank_peaks(
        self, rank: int, ranks: int, stages: int, microbatches: int
    ) -> tuple[tuple[int, ...], ...]:
        """Every microbatch of every stage, on every rank."""
        return ((microbatches,) * (stages // ranks),)

    def check(self, ranks: int, stages: int, microbatches: int) -> str | None:
        """Several stages per rank."""
        return self.too_few_stages(ranks, stages)


LOOPED_BFS = LoopedBFS()
