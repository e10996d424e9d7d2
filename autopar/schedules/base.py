"""What a schedule is: for each pipeline rank, the order of forwards and backwards."""

from __future__ import annotations

import abc
from dataclasses import dataclass
from typing import ClassVar, Literal

Kind = Literal["forward", "backward", "backward_input", "backward_weight"]
"""``backward`` is both halves at once; a schedule that splits them uses the other two."""


@dataclass(frozen=True, slots=True)
class Action:
    """Run one virtual stage forward or backward for one microbatch."""

    kind: Kind
    stage: int
    microbatch: int


class AbstractSchedule(abc.ABC):
    """A pipeline schedule.

    Implementations are stateless and final.

    Attributes:
        name: Registered name.
        interleaves: True when a rank holds several stages.
        splits_backward: True when weight gradients are actions of their own.
        runnable: True when the executor can run it.
    """

    name: ClassVar[str]
    interleaves: ClassVar[bool] = False
    splits_backward: ClassVar[bool] = False
    runnable: ClassVar[bool] = True

    def rank_of(self, stage: int, ranks: int) -> int:
        """Pipeline rank that holds a virtual stage."""
        return stage % ranks

    @abc.abstractmethod
    def actions(self, ranks: int, stages: int, microbatches: int) -> list[list[Action]]:
        """The action list of every pipeline rank.

        Args:
            ranks: Pipeline ranks.
            stages: Virtual stages, a multiple of ``ranks``.
            microbatches: Microbatches per step.

        Every rank runs forward and backward (whole, or both halves) of each of its stages once
        per microbatch; running the lists in order with blocking receives never deadlocks.
        """

    @abc.abstractmethod
    def check(self, ranks: int, stages: int, microbatches: int) -> str | None:
        """Why the schedule cannot run with these numbers, or ``None`` when it can."""

    def in_flight(
        self, ranks: int, stages: int, microbatches: int
    ) -> tuple[tuple[tuple[int, ...], ...], ...]:
        """Microbatches in flight per local stage, at the moments when they are most.

        For each rank: the tuples (one entry per stage of the rank) that no other moment of the
        step exceeds in every entry. Where backward is split, a microbatch counts until its weight
        gradient is done: what that needs is most of what was saved.
        """
        return tuple(self.rank_peaks(rank, ranks, stages, microbatches) for rank in range(ranks))

    def rank_peaks(
        self, rank: int, ranks: int, stages: int, microbatches: int
    ) -> tuple[tuple[int, ...], ...]:
        """:meth:`in_flight` of one rank. A schedule may override it with a closed form."""
        actions = self.actions(ranks, stages, microbatches)[rank]
        return peaks(actions, self.stages_of(rank, ranks, stages))

    def stages_of(self, rank: int, ranks: int, stages: int) -> tuple[int, ...]:
        """Virtual stages of a pipeline rank, in order."""
        return tuple(s for s in range(stages) if self.rank_of(s, ranks) == rank)


def peaks(actions: list[Action], stages: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
    """Counts in flight per local stage, at the moments that no other one exceeds throughout.

    Args:
        actions: Of one rank.
        stages: Its virtual stages.
    """
    local = {stage: i for i, stage in enumerate(stages)}
    counts = [0] * len(stages)
    seen: set[tuple[int, ...]] = set()
    for action in actions:
        if action.kind == "forward":
            counts[local[action.stage]] += 1
            seen.add(tuple(counts))
        elif action.kind != "backward_input":
            counts[local[action.stage]] -= 1
    kept: list[tuple[int, ...]] = []
    for candidate in sorted(seen, reverse=True):
        if not any(all(c <= p for c, p in zip(candidate, peak, strict=True)) for peak in kept):
            kept.append(candidate)
    return tuple(kept)


def v_rank_of(stage: int, ranks: int) -> int:
    """Placement in a V: down the ranks with the first stages, back up with the second ones."""
    return stage if stage < ranks else 2 * ranks - 1 - stage
