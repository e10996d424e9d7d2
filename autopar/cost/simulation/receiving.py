"""Messages that a pipeline rank takes in when it needs them."""

from __future__ import annotations

from collections.abc import Sequence

from autopar.results import Transfer


def received(transfers: Sequence[Transfer], rank_of: Sequence[int]) -> list[tuple[float, float]]:
    """By stage, seconds of taking in what its forward and what its backward reads.

    On a CPU host without a core to spare the executor receives no earlier (a thread that receives
    would interrupt one that computes), so nothing hides these seconds.

    Args:
        transfers: Between stages; those within a rank cost nothing.
        rank_of: Pipeline rank of every stage.
    """
    seconds = [(0.0, 0.0)] * len(rank_of)
    for t in transfers:
        if rank_of[t.producer] != rank_of[t.consumer]:
            forward, backward = seconds[t.consumer]
            seconds[t.consumer] = (forward + t.forward_s, backward)
            forward, backward = seconds[t.producer]
            seconds[t.producer] = (forward, backward + t.backward_s)
    return seconds
