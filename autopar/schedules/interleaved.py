"""Interleaved 1F1B: several stages per rank (Narayanan et al. 2021, arXiv 2104.04473, 2.2).

Microbatches go in rounds, as in Megatron-LM and torch: a rank runs one round on its first stage,
the same round on its second, and so on. A round has ``m // max(1, m // ranks)`` microbatches, so
``m`` must divide into that many equal rounds (any multiple of the ranks does).
"""

from __future__ import annotations

from typing import ClassVar, final

from autopar.schedules.base import Action, InRounds


@final
class Interleaved(InRounds):
    """Bubble divided by the stages per rank, communication multiplied by them."""

    name: ClassVar[str] = "interleaved"
    interleaves: ClassVar[bool] = True

    def rank_actions(
        self, rank: int, ranks: int, chunks: int, rounds: int, round_size: int
    ) -> list[Action]:
        """Warm-up, one forward one backward, drain; in rounds over the stages of a rank."""
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

    def check(self, ranks: int, stages: int, microbatches: int) -> str | None:
        """Several stages per rank and equal rounds of at least ``ranks`` microbatches."""
        return self.too_few_stages(ranks, stages) or self.uneven_rounds(ranks, microbatches)


INTERLEAVED = Interleaved()
