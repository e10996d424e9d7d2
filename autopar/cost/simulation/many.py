"""One schedule simulated with many sets of durations at once, as arrays.

The order of actions does not depend on how long they take, so plans that share a schedule, its
stages and microbatches share every step of :func:`.simulate.run`. Here only the chain
of stages sends messages: what else goes between stages can delay a step and is left out, so ends
are lower bounds, and exact for a chain.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from autopar.cost.simulation.simulate import Program

Array = npt.NDArray[np.float64]


def ends_of_many(program: Program, durations: Array, hops: Array) -> Array:
    """Time at which each pipeline rank has run its last action ``[rank, case]``.

    Args:
        program: The order.
        durations: Seconds ``[node, case]``.
        hops: Seconds of a message between stages ``s`` and ``s + 1``, either way
            ``[stages - 1, case]``; 0 where both are on one rank.
    """
    cases = durations.shape[1]
    free = list(np.zeros((program.ranks, cases)))
    maximum, add = np.maximum, np.add
    links: dict[tuple[int, int], Array] = {}
    arrivals: list[dict[int, Array]] = [{} for _ in range(program.nodes)]
    seconds = list(durations)
    receivers = _receivers(program, list(hops))
    for rank, node, microbatch in program.order:
        now = free[rank]
        came = arrivals[node].pop(microbatch, None)
        if came is not None:
            maximum(now, came, out=now)
        add(now, seconds[node], out=now)
        if node not in receivers:
            continue
        receiver, link, message = receivers[node]
        begin = links.get(link)
        if begin is None:
            sent = now + message
        else:
            sent = maximum(begin, now)
            add(sent, message, out=sent)
        links[link] = sent
        arrivals[receiver][microbatch] = sent
    return np.array(free)


def _receivers(
    program: Program, hops: Sequence[Array]
) -> dict[int, tuple[int, tuple[int, int], Array]]:
    """Node -> node that waits for its message, the link it takes, and the seconds of it."""
    stages, rank_of = program.stages, program.rank_of
    found: dict[int, tuple[int, tuple[int, int], Array]] = {}
    for stage in range(stages - 1):
        ends = rank_of[stage], rank_of[stage + 1]
        if ends[0] != ends[1]:
            found[stage] = (stage + 1, ends, hops[stage])
            found[stages + stage + 1] = (stages + stage, ends[::-1], hops[stage])
    return found
