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
        point_s: Seconds of timed passes aimed at per point.
        longest_pass_s: A block whose forward and backward take longer is not timed at this size.
        budget_s: Seconds for all points; sizes other than the smallest and the largest are left
            out when it is used up.
        slack_s: Seconds to wait for a single result before measuring is given up.
        memory_share: Share of the available memory the busy ranks may use together.
        memory_factor: Allocated bytes over the bytes a block is known to need.
        largest_optimizer_bytes: Parameter bytes up to which the optimizer is timed on all
            parameters; above, on a part.
        import_scale: Standard deviation of values that stand for earlier activations.
        weight_scale: Standard deviation of weights.
    """

    warmup: int = 3
    fewest_repeats: int = 5
    most_repeats: int = 40
    point_s: float = 0.4
    longest_pass_s: float = 15.0
    budget_s: float = 150.0
    slack_s: float = 180.0
    memory_share: float = 0.75
    memory_factor: float = 1.3
    largest_optimizer_bytes: float = 2e9
    import_scale: float = 1.0
    weight_scale: float = 0.02


def microbatch_sizes(batch: int) -> tuple[int, ...]:
    """Sizes to measure: powers of two below ``batch``, and ``batch``."""
    sizes = [2**i for i in range(batch.bit_length()) if 2**i < batch]
    return (*sizes, batch)
