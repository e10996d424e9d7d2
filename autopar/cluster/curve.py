"""Measured cost of one collective over one group size, as a curve over the message size."""

from __future__ import annotations

import bisect
import math
from dataclasses import dataclass

COLLECTIVES = (
    "all_reduce",
    "reduce_scatter",
    "all_gather",
    "all_to_all",
    "broadcast",
    "send_recv",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class CollectiveCurve:
    """Seconds of a collective for several message sizes, with the alpha-beta line through them.

    Attributes:
        collective: One of :data:`COLLECTIVES`.
        ranks: Group size.
        points: ``(message bytes, seconds)`` sorted by bytes; the message is the full tensor each
            rank contributes or ends with (all_gather: the gathered tensor).
        alpha_s: Latency of the fitted line ``alpha + bytes / bytes_per_s``.
        bytes_per_s: Algorithm bandwidth of the fitted line.
        concurrency: Groups that ran the collective at the same time.
        nodes: Hosts the group spans; 1 when all its ranks share a host.
    """

    collective: str
    ranks: int
    points: tuple[tuple[float, float], ...]
    alpha_s: float
    bytes_per_s: float
    concurrency: int = 1
    nodes: int = 1

    def seconds(self, size_bytes: float) -> float:
        """Time of one message: log-log interpolation, the fitted bandwidth beyond the ends."""
        if size_bytes <= 0:
            return 0.0
        sizes = [p[0] for p in self.points]
        if size_bytes <= sizes[0]:
            return self.points[0][1]
        last_size, last_s = self.points[-1]
        if size_bytes >= last_size:
            return last_s * size_bytes / last_size
        right = bisect.bisect_left(sizes, size_bytes)
        (x0, y0), (x1, y1) = self.points[right - 1], self.points[right]
        weight = math.log(size_bytes / x0) / math.log(x1 / x0)
        return math.exp(math.log(y0) + (math.log(y1) - math.log(y0)) * weight)
