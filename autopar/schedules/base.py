"""What a schedule is: for each pipeline rank, the order of forwards and backwards."""

from __future__ import annotations

import abc
from operator import le
from typing import ClassVar, Literal, NamedTuple

Kind = Literal["forward", "backward", "backward_input", "backward_weight"]
"""``backward`` is both halves at once; a schedule that splits them uses the other two."""

SETTLED_ROUNDS = 4
"""Rounds of one microbatch per rank after which those in flight have taken all their values."""


class Action(NamedTuple):
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
    """

    name: ClassVar[str]
    interleaves: ClassVar[bool] = False
    splits_backward: ClassVar[bool] = False

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

    def too_few_stages(self, ranks: int, stages: int) -> str | None:
        """Why the stages are not two or more on every rank."""
        if stages % ranks or stages == ranks:
            return (
                f"{self.name} needs 2 or more stages per pipeline rank, "
                f"not {stages} stages on {ranks} ranks"
            )
        return None


def peaks(actions: list[Action], stages: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
    """Counts in flight per local stage, at the moments that no other one exceeds throughout.

    Args:
        actions: Of one rank.
        stages: Its virtual stages.
    """
    local = {stage: i for i, stage in enumerate(stages)}
    counts = [0] * len(stages)
    seen: set[tuple[int, ...]] = set()
    rising = False
    for action in actions:
        kind = action.kind
        if kind == "forward":
            counts[local[action.stage]] += 1
            rising = True
        elif kind != "backward_input":
            if rising:  # counts before this one are not larger
                seen.add(tuple(counts))
                rising = False
            counts[local[action.stage]] -= 1
    if rising:
        seen.add(tuple(counts))
    kept: list[tuple[int, ...]] = []
    for candidate in sorted(seen, reverse=True):
        if not any(all(map(le, candidate, peak)) for peak in kept):
            kept.append(candidate)
    return tuple(kept)


class InRounds(AbstractSchedule):
    """A schedule that takes microbatches in equal rounds, as Megatron-LM and torch do.

    A round has ``m // max(1, m // ranks)`` microbatches.
    """

    @abc.abstractmethod
    def rank_actions(
        self, rank: int, ranks: int, chunks: int, rounds: int, round_size: int
    ) -> list[Action]:
        """The list of one rank with ``chunks`` stages."""

    def actions(self, ranks: int, stages: int, microbatches: int) -> list[list[Action]]:
        """See :meth:`rank_actions`."""
        rounds = max(1, microbatches // ranks)
        return [
            self.rank_actions(rank, ranks, stages // ranks, rounds, microbatches // rounds)
            for rank in range(ranks)
        ]

    def rank_peaks(
        self, rank: int, ranks: int, stages: int, microbatches: int
    ) -> tuple[tuple[int, ...], ...]:
        """The pattern repeats every round, so a few rounds show all peaks."""
        rounds = max(1, microbatches // ranks)
        size, few = microbatches // rounds, min(rounds, SETTLED_ROUNDS)
        actions = self.rank_actions(rank, ranks, stages // ranks, few, size)
        return peaks(actions, self.stages_of(rank, ranks, stages))

    def uneven_rounds(self, ranks: int, microbatches: int) -> str | None:
        """Why the microbatches do not form equal rounds of at least ``ranks``."""
        if microbatches < ranks or microbatches % (microbatches // ranks):
            return (
                f"{self.name} needs at least {ranks} microbatches in equal rounds (a multiple of "
                f"pp={ranks} always works), not {microbatches}"
            )
        return None


class InV(AbstractSchedule):
    """Two stages per rank: down the ranks with the first ones, back up with the second ones."""

    interleaves: ClassVar[bool] = True

    @abc.abstractmethod
    def rank_actions(self, rank: int, ranks: int, microbatches: int) -> list[Action]:
        """The list of one rank."""

    @abc.abstractmethod
    def fewest_microbatches(self, ranks: int) -> int:
        """Microbatches below which the order is not defined."""

    def rank_of(self, stage: int, ranks: int) -> int:
        """Down the ranks and back up."""
        return stage if stage < ranks else 2 * ranks - 1 - stage

    def actions(self, ranks: int, stages: int, microbatches: int) -> list[list[Action]]:
        """See :meth:`rank_actions`."""
        return [self.rank_actions(rank, ranks, microbatches) for rank in range(ranks)]

    def rank_peaks(
        self, rank: int, ranks: int, stages: int, microbatches: int
    ) -> tuple[tuple[int, ...], ...]:
        """The pattern repeats once the V is full."""
        few = min(microbatches, SETTLED_ROUNDS * ranks)
        return peaks(self.rank_actions(rank, ranks, few), self.stages_of(rank, ranks, stages))

    def check(self, ranks: int, stages: int, microbatches: int) -> str | None:
        """Two stages per rank, and microbatches enough to fill the V."""
        if stages != 2 * ranks:
            return (
                f"{self.name} runs 2 stages per pipeline rank, "
                f"not {stages} stages on {ranks} ranks"
            )
        least = self.fewest_microbatches(ranks)
        if microbatches < least:
            return (
                f"{self.name} on {ranks} ranks needs at least {least} microbatches, "
                f"not {microbatches}"
            )
        return None
