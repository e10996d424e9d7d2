"""Lower bounds of a pipeline's simulated time, by schedule, as arrays.

A step takes at least as long as any path through its dependencies: the order of a rank's own
actions, and the chain of stages that a microbatch goes down forward and up backward. So does every
weighted mean of paths. Messages take time too; here they take none, and a stage is taken to wait
for the one before it (*chained*), else only ``microbatches x fullest`` holds.

Two questions are answered. :func:`least_step_seconds` knows only totals and holds for all stage
boundaries. :class:`StagePaths` knows every stage and is exact or nearly so when stages are equal.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Numbers = Array | float


@dataclass(frozen=True, kw_only=True)
class PipelineTotals:
    """What is known before boundaries are; all fields broadcast against each other.

    Attributes:
        ranks: Pipeline ranks.
        chunks: Stages per rank.
        microbatches: Per step.
        forward_s: Forward of all blocks for one microbatch.
        work_s: Forward, backward and recompute of all blocks for one microbatch.
        fullest_s: Some rank has at least this work; ``work_s / ranks`` at least.
    """

    ranks: Array
    chunks: Array
    microbatches: Array
    forward_s: Array
    work_s: Array
    fullest_s: Array


def least_step_seconds(
    schedule: str,
    *,
    ranks: Numbers,
    chunks: Numbers,
    microbatches: Numbers,
    forward_s: Numbers,
    backward_s: Numbers,
    largest_s: Numbers = 0.0,
) -> Array:
    """Least seconds of the actions of a step over all stage boundaries of a chain.

    Args:
        schedule: Registered name; one without a formula gets ``microbatches x fullest rank``.
        ranks: Pipeline ranks; this and the others are numbers or arrays that broadcast.
        chunks: Stages per rank.
        microbatches: Per step, a number the schedule runs with.
        forward_s: Forward of all blocks for one microbatch.
        backward_s: Backward with recompute, both halves.
        largest_s: Forward and backward of the largest block.
    """
    p, v, m, forward, backward, largest = (
        np.asarray(x, dtype=float)
        for x in (ranks, chunks, microbatches, forward_s, backward_s, largest_s)
    )
    work = forward + backward
    fullest = np.maximum(work / p, largest)
    totals = PipelineTotals(
        ranks=p,
        chunks=v,
        microbatches=m,
        forward_s=forward,
        work_s=work,
        fullest_s=fullest,
    )
    formula = _FORMULAS.get(schedule)
    even = m * fullest
    return np.asarray(even if formula is None else np.maximum(even, formula(totals)))


def _gpipe(t: PipelineTotals) -> Array:
    """All once down and up, and all others on the slowest forward and the slowest backward."""
    return np.asarray(t.work_s + (t.microbatches - 1) * t.fullest_s)


def _one_f_one_b(t: PipelineTotals) -> Array:
    """Round trips, and the rest of the microbatches on any one rank.

    Rank 0 runs p microbatches ahead: a path may go all the way down and up with microbatch 0, and
    again after each p. With ``m - 1 = (trips - 1) p + rest`` it has ``rest`` microbatches to
    spare, and may spend them on any rank q, in pairs of backward and forward, on the first way
    up: ``trips x work + rest x_q <= T``. It needs 2 trips, else rank q lacks forwards; then
    ``work + (m - 1) b_q`` remains, and ``P_q + m x_q`` with the work ``P_q`` before the rank,
    which sums to ``work <= T (1 - (1 - 1/m)^p)``.
    """
    m, p = t.microbatches, t.ranks
    trips = 1 + (m - 1) // p
    tight = trips * t.work_s + (m - 1) % p * t.fullest_s
    backward = t.work_s - t.forward_s
    short = np.maximum(t.work_s + (m - 1) * backward / p, t.work_s / (1 - (1 - 1 / m) ** p))
    return np.where((trips > 1) | (p == 1), tight, short)


def _interleaved(t: PipelineTotals) -> Array:
    """Fill of any one chunk, all work of a rank but the earlier chunks' first round, and back.

    A path comes down to chunk c of rank q with microbatch 0. It has passed the stages before, and
    it misses one round (of R microbatches) of the rank's chunks before c. The mean over c, with
    weight ``w_q`` for rank q, gives the stage of chunk c' of rank q at least
    ``m w_q + (weights after q) / v - (v - 1) / v max(0, R w_q - 1)``; backward is the mirror
    image. Any weights will do; falling by ``1 - 1 / (v n)`` towards rank 0, with
    ``n = m - R (v - 1) / (2 v)``, makes the first and last rank nearly equal, and the least is at
    one of the two.
    """
    m, p, v = t.microbatches, t.ranks, t.chunks
    size = m // np.maximum(1, m // p)
    keep = 1 - 1 / (v * np.maximum(m - size * (v - 1) / (2 * v), 1.0))
    safe = np.where(keep > 0, keep, 0.5)
    last = (1 - safe) / (1 - safe**p)
    first = last * safe ** (p - 1)

    def least(weight: Array, after: Array) -> Array:
        missed = (v - 1) / v * np.maximum(0.0, size * weight - 1)
        return np.asarray(m * weight + after / v - missed)

    rounds = np.minimum(least(first, 1 - first), least(last, np.zeros_like(last)))
    return np.asarray(t.work_s * rounds)


def _looped_bfs(t: PipelineTotals) -> Array:
    """All once down and up, all others on the slowest stage forward and the slowest backward."""
    return np.asarray(t.work_s * (1 + (t.microbatches - 1) / (t.ranks * t.chunks)))


def zero_bubble_mean(
    *, ranks: Numbers, microbatches: Numbers, forward_s: Numbers, work_s: Numbers
) -> Array:
    """Least mean over the ranks of the time of their last action."""
    p = np.asarray(ranks, dtype=float)
    return np.asarray((microbatches * work_s + (p - 1) / 2 * forward_s) / p)


def _zero_bubble(t: PipelineTotals) -> Array:
    """Mean over ranks of two paths through all work of the rank.

    One comes down to rank q with microbatch 0: the forwards before it. One comes back up to it:
    all forwards, less the ``p - q`` that the rank has run by then. Together every forward counts
    ``(p - 1) / 2`` times more than m, over p paths.
    """
    return zero_bubble_mean(
        ranks=t.ranks, microbatches=t.microbatches, forward_s=t.forward_s, work_s=t.work_s
    )


def _zbv(t: PipelineTotals) -> Array:
    """Mean over ranks of three paths through all work of the rank, with weights 3, 1, 1.

    The first forward of its first stage q, that of its second, and the first backward of its
    second. By then the rank has run 0, ``2 (p - q) - 1`` and ``2 p - q - 1`` forwards of its
    first stage, and the last ``q + 1`` of its second; all others passed on the way count once.
    """
    return _with_fill(t, (t.ranks - 1) / 5)


def _dualpipev(t: PipelineTotals) -> Array:
    """As ZBV; rank p - 1 has run one more forward before its first backward."""
    hops = t.ranks - 1
    return _with_fill(t, hops * hops / (5 * hops + 2))


def _with_fill(t: PipelineTotals, forwards: Array) -> Array:
    return np.asarray((t.microbatches * t.work_s + forwards * t.forward_s) / t.ranks)


_FORMULAS: dict[str, Callable[[PipelineTotals], Array]] = {
    "gpipe": _gpipe,
    "1f1b": _one_f_one_b,
    "interleaved": _interleaved,
    "looped_bfs": _looped_bfs,
    "zero_bubble": _zero_bubble,
    "zbv": _zbv,
    "dualpipev": _dualpipev,
}
