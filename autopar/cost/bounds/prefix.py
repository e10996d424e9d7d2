"""Lower bounds of the simulated step time when the first stages are fixed, one stage per rank.

A bound is the weight of one path through the step's dependencies, see :mod:`.step`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from autopar.cost.layout import Cuts

if TYPE_CHECKING:
    from autopar.cost.bounds.step import Bounds

Vector = npt.NDArray[np.float64]


def prefix_seconds(bounds: Bounds, cuts: Cuts) -> float:
    """Least step time when the first ``len(cuts) - 1`` stages end at ``cuts``.

    1F1B and zero bubble let rank ``r`` run only ``pp - r`` microbatches ahead, so a path can go
    down from ``r`` to the newest stage ``q`` and back again every ``q - r + 1`` microbatches; all
    such ranges are tried at once. GPipe pays the slowest forward and the slowest backward.

    Args:
        bounds: Of the layout.
        cuts: Boundaries of the first stages, 0 included.

    Returns:
        Seconds; 0 where nothing is known.
    """
    layout = bounds.layout
    if not bounds.chained or layout.stages != layout.mesh.pp or layout.stages < 2:
        return 0.0
    if layout.schedule == "gpipe":
        return _gpipe(bounds, cuts)
    if layout.schedule == "1f1b":
        return _one_f_one_b(bounds, cuts)
    if layout.schedule == "zero_bubble":
        return _zero_bubble(bounds, cuts)
    return 0.0


def _gpipe(bounds: Bounds, cuts: Cuts) -> float:
    spans = [bounds.span(s, cuts[s], cuts[s + 1]) for s in range(len(cuts) - 1)]
    forward, backward = bounds.block_seconds
    hop_f, hop_b = bounds.least_hops
    once = float(forward.sum() + backward.sum() + hop_f[-1] + hop_b[-1])
    slowest = max(f for f, _ in spans) + max(b for _, b in spans)
    steps = bounds.layout.microbatches - 1
    return once + steps * slowest + bounds.first_tail + bounds.layout.overhead_s


@dataclass(frozen=True, kw_only=True)
class _Trips:
    """Round trips between each stage ``r`` of the prefix and its newest stage ``q``.

    Attributes:
        climb: Backwards (input halves where they are split) and messages from ``q`` up to stage 0.
        first_back: End of the first backward of stage ``q``, or of its input half.
        forward: Of stage ``q``.
        backward: Of stage ``q``, its input half where it is split.
        warm: Forwards that stage ``q`` runs before its first backward.
        number: Round trips by ``r``.
        length: Microbatches that each goes on by ``r``.
        seconds: Of each, by ``r``.
    """

    climb: float
    first_back: float
    forward: float
    backward: float
    warm: int
    number: npt.NDArray[np.intp]
    length: npt.NDArray[np.intp]
    seconds: Vector

    @property
    def done(self) -> npt.NDArray[np.intp]:
        """Microbatches whose backward stage ``q`` has run after all trips, less one."""
        return self.number * self.length

    def rest(self, microbatches: int) -> Vector:
        """Seconds of forward and backward that stage ``q`` has left after all trips, by ``r``."""
        backward = (microbatches - 1 - self.done) * self.backward
        return backward + np.maximum(0, microbatches - self.done - self.warm) * self.forward


def _trips(bounds: Bounds, cuts: Cuts) -> _Trips:
    layout, last = bounds.layout, len(cuts) - 2
    m, pp = layout.microbatches, layout.mesh.pp
    spans = np.array([bounds.span(s, cuts[s], cuts[s + 1]) for s in range(last + 1)])
    spans[:, 1] -= [bounds.weight(s, cuts[s], cuts[s + 1]) for s in range(last + 1)]
    hop_f, hop_b = bounds.hops
    boundaries, stages = np.asarray(cuts[: last + 1]), np.arange(last + 1)
    down, up = hop_f[stages, boundaries], hop_b[stages, boundaries]
    forward, backward = spans[last]
    warm = min(m, pp - last)
    arrive = float(spans[:last, 0].sum() + down.sum())
    first_back = arrive + max(warm * forward, forward + float(bounds.below(last)[cuts[-1]]))
    length = last - stages + 1
    ahead = np.minimum(m, pp - stages)
    trip = np.cumsum((spans.sum(axis=1))[::-1])[::-1]
    links = np.concatenate((np.cumsum((down + up)[:0:-1])[::-1], [0.0]))
    return _Trips(
        climb=float(spans[:last, 1].sum() + up.sum()),
        first_back=float(first_back + backward),
        forward=float(forward),
        backward=float(backward),
        warm=warm,
        number=np.where(m - 1 >= ahead, (m - 1 - ahead) // length + 1, 0),
        length=length,
        seconds=trip + links,
    )


def _one_f_one_b(bounds: Bounds, cuts: Cuts) -> float:
    trips, m = _trips(bounds, cuts), bounds.layout.microbatches
    walk = float(np.max(trips.number * trips.seconds + trips.rest(m)))
    leave = trips.climb + float(bounds.first_tails[cuts[1] - 1])
    return float(trips.first_back + walk + leave + bounds.layout.overhead_s)


def _zero_bubble(bounds: Bounds, cuts: Cuts) -> float:
    """Rank ``r`` runs the weight gradients of microbatch ``i - r`` after backward ``i``.

    One of them lies on every round trip, once there are any. The path ends with all that is left
    on the newest stage, or goes up to rank 0 and its last weight gradient.
    """
    trips, m, last = _trips(bounds, cuts), bounds.layout.microbatches, len(cuts) - 2
    weights = np.array([bounds.weight(s, cuts[s], cuts[s + 1]) for s in range(last + 1)])
    stages = np.arange(last + 1)
    before_any = -(-stages // trips.length)
    heavy = np.maximum(0, trips.number - before_any)
    walk = trips.number * trips.seconds + heavy * weights
    gone = np.maximum(0, trips.done - last)
    own = (m - gone) * weights[last] + bounds.tails(last)[cuts[last], cuts[-1] - cuts[last] - 1]
    between = np.maximum(0, m - 1 - last - gone) * weights[last]
    up = between + trips.climb + weights[0] + float(bounds.first_tails[cuts[1] - 1])
    found = float(np.max(walk + trips.rest(m) + np.maximum(own, up)))
    return float(trips.first_back + found + bounds.layout.overhead_s)
