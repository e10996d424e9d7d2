"""Interleaved 1F1B: several stages per rank (Narayanan et al. 2021, arXiv 2104.04473, 2.2).

Microbatches go in rounds, as in Megatron-LM and torch: a rank runs one round on its first stage,
the same round on its second, and so on. A round has ``m // max(1, m // ranks)`` microbatches, so
``m`` must divide into that many equal rounds (any multiple of the ranks does).
"""

from __future__ import annotations

from typing import ClassVar, final

from autopar.schedules.base import AbstractSchedule, Action, peaks

SETTLED_ROUNDS = 4
"""Rounds after which the microbatches in flight have taken all their values."""


@final
class Interleaved(AbstractSchedule):
    """Bubble divided by the stages per rank, communication multiplied by them."""

    name: ClassVar[str] = "interleaved"
    interleaves: ClassVar[bool] = True

    def actions(self, ranks: int, stages: int, microbatches: int) -> list[list[Action]]:
        """Warm-up, one forward one backward, drain; in rounds over the stages of a rank."""
        rounds = max(1, microbatches // ranks)
        return [
            _rank_actions(rank, ranks, stages // ranks, rounds, microbatches // rounds)
            for rank in range(ranks)
        ]

    def rank_peaks(
        self, rank: int, ranks: int, stages: int, microbatches: int
    ) -> tuple[tuple[int, ...], ...]:
        """The pattern repeats every round, so a few rounds show all peaks."""
        rounds = max(1, microbatches // ranks)
        size, few = microbatches // rounds, min(rounds, SETTLED_ROUNDS)
        actions = _rank_actions(rank, ranks, stages // ranks, few, size)
        return peaks(actions, self.stages_of(rank, ranks, stages))

    def check(self, ranks: int, stages: int, microbatches: int) -> str | None:
        """Several stages per rank and equal rounds of at least ``ranks`` microbatches."""
        if stages % ranks or stages == ranks:
            return (
                f"interleaved needs 2 or more stages per pipeline rank, "
                f"not {stages} stages on {ranks} ranks"
            )
        if microbatches < ranks or microbatches % (microbatches // ranks):
            return (
                f"interleaved needs at least {ranks} microbatches in equal rounds (a multiple of "
                f"pp={ranks} always works), not {microbatches}"
            )
        return None


def _rank_actions(
    rank: int, ranks: int, chunks: int, rounds: int, round_size: int
) -> list[Action]:
    total = chunks * rounds * round_size
    warmup = min((chunks - 1) * round_size + 2 * (ranks - 1 - rank), total)
    period = round_size * chunks

    def action(step: int, forward: bool) -> Action:
        chunk = step % period // round_size
        microbatch = step // period * round_size + step % round_size
        if forward:
            return Action("forward", chunk * ranks + rank, microbatch)
        return Action("backward", (chunks - 1 - chunk) * ranks + rank, microbatch)

    order = [action(step, True) for step in range(warmup)]
    for step in range(total - warmup):
        order += [action(warmup + step, True), action(step, False)]
    return order + [action(step, False) for step in range(total - warmup, total)]


INTERLEAVED = Interleaved()
