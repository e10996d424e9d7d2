"""Zero-bubble 1F1B: weight gradients wait for idle time (Qi et al. 2023, arXiv 2401.10241).

With several stages per rank this is torch's ScheduleInterleavedZeroBubble. With one it is ZB-H1:
rank ``r`` starts its weight gradients ``r`` backwards late, so that it fills the drain.
"""

from __future__ import annotations

from typing import ClassVar, final

from autopar.schedules.base import Action, InRounds


class _ZeroBubble(InRounds):
    """The action list both variants share."""

    splits_backward: ClassVar[bool] = True

    def rank_actions(
        self, rank: int, ranks: int, chunks: int, rounds: int, round_size: int
    ) -> list[Action]:
        """Warm-up, then forward, input gradient, and the weight gradient due; then the rest."""
        total = chunks * rounds * round_size
        warmup = min((chunks - 1) * round_size + (ranks - 1 - rank), total)
        period = round_size * chunks

        def place(step: int, forward: bool) -> tuple[int, int]:
            chunk = step % period // round_size
            microbatch = step // period * round_size + step % round_size
            return (chunk if forward else chunks - 1 - chunk) * ranks + rank, microbatch

        order = [Action("forward", *place(step, True)) for step in range(warmup)]
        weights = 0
        for step in range(total):
            if warmup + step < total:
                order.append(Action("forward", *place(warmup + step, True)))
            order.append(Action("backward_input", *place(step, False)))
            if step >= rank:
                order.append(Action("backward_weight", *place(weights, False)))
                weights += 1
        rest = range(weights, total)
        return order + [Action("backward_weight", *place(step, False)) for step in rest]


@final
class ZeroBubble(_ZeroBubble):
    """One stage per rank; as many microbatches in flight as 1F1B plus the late weights."""

    name: ClassVar[str] = "zero_bubble"

    def rank_peaks(
        self, rank: int, ranks: int, stages: int, microbatches: int
    ) -> tuple[tuple[int, ...], ...]:
        """Rank ``r`` runs ``p - r`` ahead, and its weight gradients are ``r`` late: p in all."""
        return ((min(microbatches, ranks),),)

    def check(self, ranks: int, stages: int, microbatches: int) -> str | None:
        """One stage per rank, equal rounds."""
        if stages != ranks:
            return f"zero_bubble runs one stage per rank, not {stages} stages on {ranks} ranks"
        return self.uneven_rounds(ranks, microbatches)


@final
class InterleavedZeroBubble(_ZeroBubble):
    """Several stages per rank."""

    name: ClassVar[str] = "interleaved_zb"
    interleaves: ClassVar[bool] = True

    def check(self, ranks: int, stages: int, microbatches: int) -> str | None:
        """As interleaved 1F1B."""
        return self.too_few_stages(ranks, stages) or self.uneven_rounds(ranks, microbatches)


ZERO_BUBBLE = ZeroBubble()
INTERLEAVED_ZERO_BUBBLE = InterleavedZeroBubble()
