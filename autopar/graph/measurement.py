"""Times measured on a real device, per unique block, as curves over the microbatch size."""

from __future__ import annotations

import bisect
from dataclasses import dataclass, field

Point = tuple[float, float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockCurve:
    """Forward and backward seconds of one block for several microbatch sizes.

    Attributes:
        points: ``(samples, forward_s, backward_s)`` sorted by samples.
    """

    points: tuple[Point, ...]

    def at(self, samples: float) -> tuple[float, float]:
        """Seconds (forward, backward); linear between points, by the end slopes outside.

        Below the smallest point the line through the two smallest is used, never below a tenth
        of the smallest measured time.
        """
        sizes = [p[0] for p in self.points]
        if len(sizes) == 1:
            scale = samples / sizes[0]
            return self.points[0][1] * scale, self.points[0][2] * scale
        right = min(max(bisect.bisect_left(sizes, samples), 1), len(sizes) - 1)
        a, b = self.points[right - 1], self.points[right]
        weight = (samples - a[0]) / (b[0] - a[0])
        forward = a[1] + (b[1] - a[1]) * weight
        backward = a[2] + (b[2] - a[2]) * weight
        return max(forward, self.points[0][1] / 10), max(backward, self.points[0][2] / 10)


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """What was timed on one device, with as many busy processes beside it as a real run has.

    Attributes:
        device: Device name, as in the cluster (``cpu`` host model or GPU name).
        busy_ranks: Processes that computed at the same time on the host.
        threads: Threads per process.
        curves: Block signature -> curve.
        composition: Whole-model seconds over the sum of its blocks' seconds (forward + backward),
            by microbatch size: what isolated blocks miss, the rest of a training step included.
        optimizer_s: Seconds of one optimizer step over all parameters.
        optimizer_s_per_byte: The same per parameter byte.
        zero_grad_s: Seconds to clear gradients.
        accumulate_s_per_byte: Seconds per parameter byte to add the gradient of another
            microbatch to the one that is there; not part of the curves, whose passes start
            without gradients.
        again: Block signature -> seconds that recomputing the block costs besides running it
            again: in full, and all but its products (there the few ops that run again are
            counted); of blocks that were timed so, with the smallest microbatch.
        checkpoint_s: The same in full of a unit of a chain of tiny layers, for other blocks.
        checkpoint_s_per_op: More of them for every op in the unit.
        selective_s: The same of recomputing all but a unit's products.
        selective_s_per_op: More of them for every op in the unit.
        resident_bytes: Resident memory of a rank before the model exists (interpreter, torch,
            process group).
        spread: Relative half-width that covers 90 % of the repeats.
        eager: ``(samples, forward, backward)``: seconds of the user's own module over those of
            the traced ops, which ranks run in all plans but plain data parallel ones; never
            below 1.
        pace_s: Seconds of a reference pass on a CPU host meanwhile; beside those of a later run
            they tell how much slower the host has become. ``None`` when unknown.
    """

    device: str
    busy_ranks: int
    threads: int
    curves: dict[str, BlockCurve]
    composition: tuple[tuple[float, float], ...]
    optimizer_s: float
    optimizer_s_per_byte: float
    zero_grad_s: float
    resident_bytes: float
    spread: float
    accumulate_s_per_byte: float = 0.0
    again: dict[str, tuple[float, float]] = field(default_factory=dict)
    checkpoint_s: float = 0.0
    checkpoint_s_per_op: float = 0.0
    selective_s: float = 0.0
    selective_s_per_op: float = 0.0
    eager: tuple[Point, ...] = ()
    pace_s: float | None = None

    def composition_at(self, samples: float) -> float:
        """Composition factor for a microbatch size (nearest measured; 1.0 when none was)."""
        if not self.composition:
            return 1.0
        return min(self.composition, key=lambda p: abs(p[0] - samples))[1]

    def eager_at(self, samples: float) -> tuple[float, float]:
        """Factors of forward and backward for a microbatch size (nearest measured, else 1)."""
        if not self.eager:
            return 1.0, 1.0
        return min(self.eager, key=lambda p: abs(p[0] - samples))[1:]
