"""What a schedule is: for each pipeline rank, the order of forwards and backwards."""

from __future__ import annotations

import abc
from dataclasses import dataclass
from typing import ClassVar, Literal

Kind = Literal["forward", "backward"]


@dataclass(frozen=True, slots=True)
class Action:
    """Run one virtual stage forward or backward for one microbatch."""

    kind: Kind
    stage: int
    microbatch: int


class AbstractSchedule(abc.ABC):
    """A pipeline schedule.

    Implementations are stateless and final; the virtual stage ``s`` lives on pipeline rank
    ``s % ranks``.
    """

    name: ClassVar[str]
    interleaves: ClassVar[bool] = False

    @abc.abstractmethod
    def actions(self, ranks: int, stages: int, microbatches: int) -> list[list[Action]]:
        """The action list of every pipeline rank.

        Args:
            ranks: Pipeline ranks.
            stages: Virtual stages, a multiple of ``ranks``.
            microbatches: Microbatches per step.

        Every rank runs forward and backward of each of its stages once per microbatch; running
        the lists in order with blocking receives never deadlocks.
        """

    @abc.abstractmethod
    def check(self, ranks: int, stages: int, microbatches: int) -> str | None:
        """Why the schedule cannot run with these numbers, or ``None`` when it can."""

    def in_flight(
        self, ranks: int, stages: int, microbatches: int
    ) -> tuple[tuple[tuple[int, ...], ...], ...]:
        """Microbatches in flight per local stage, at the moments when they are most.

        For each rank: the tuples (one entry per stage of the rank) that no other moment of the
        step exceeds in every entry. A schedule may override it with a closed form.
        """
        return tuple(
            peaks(actions, rank, ranks, stages)
            for rank, actions in enumerate(self.actions(ranks, stages, microbatches))
        )


def peaks(
    actions: list[Action], rank: int, ranks: int, stages: int
) -> tuple[tuple[int, ...], ...]:
    """Counts in flight per local stage, at the moments that no other one exceeds throughout."""
    counts = [0] * (stages // ranks)
    seen: set[tuple[int, ...]] = set()
    for action in actions:
        counts[(action.stage - rank) // ranks] += 1 if action.kind == "forward" else -1
        if action.kind == "forward":
            seen.add(tuple(counts))
    kept: list[tuple[int, ...]] = []
    for candidate in sorted(seen, reverse=True):
        if not any(all(c <= p for c, p in zip(candidate, peak, strict=True)) for peak in kept):
            kept.append(candidate)
    return tuple(kept)
