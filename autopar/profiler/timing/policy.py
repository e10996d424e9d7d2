"""The knobs of measuring, in one place."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasurePolicy:
    """How blocks are timed.

    Attributes:
        warmup: Passes before the timed ones.
        fewest_repeats: Timed passes per point, at least.
        most_repeats: Timed passes per point, at most.
        central: Quantile of the timed passes that counts as their time; below the median, as
            other programs only ever add time.
        window_s: Where ranks have more threads than the host cores: seconds of passes that are
            averaged before the quantile is taken
            (:meth:`autopar.profiler.timing.blocks.Samples.typical`).
        noisy_spread: A warning is given when the median spread of the points is larger.
        point_s: Seconds of timed passes aimed at per point.
        long_point_s: Seconds a point with long passes may take; fewer passes are timed then, but
            at least two.
        longest_pass_s: A block whose forward and backward take longer is not timed at this size.
        budget_s: Seconds for all points; sizes other than the smallest and the largest are left
            out when it is used up.
        slack_s: Seconds to wait for a single result before measuring is given up.
        memory_share: Share of the available memory the busy ranks may use together.
        smallest_share: Nothing is measured when blocks that fit hold less than this share of the
            FLOPs.
        memory_factor: Allocated bytes over the bytes a block is known to need.
        largest_optimizer_bytes: Parameter bytes up to which the optimizer is timed on all
            parameters; above, on a part.
        import_scale: Standard deviation of values that stand for earlier activations.
        weight_scale: Standard deviation of weights.
    """

    warmup: int = 3
    fewest_repeats: int = 5
    most_repeats: int = 300
    central: float = 0.25
    window_s: float = 0.06
    noisy_spread: float = 0.5
    point_s: float = 0.4
    long_point_s: float = 4.0
    longest_pass_s: float = 30.0
    budget_s: float = 150.0
    slack_s: float = 180.0
    memory_share: float = 0.75
    smallest_share: float = 0.3
    memory_factor: float = 1.3
    largest_optimizer_bytes: float = 2e9
    import_scale: float = 1.0
    weight_scale: float = 0.02


def microbatch_sizes(smallest: int, largest: int) -> tuple[int, ...]:
    """Sizes to measure: powers of two from ``smallest`` on, and ``largest``."""
    powers = [2**i for i in range(largest.bit_length()) if smallest <= 2**i < largest]
    return (*powers, largest)
