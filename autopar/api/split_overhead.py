"""Measure what a backward in two halves costs on this host besides the products it does."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from autopar.cluster.overhead import ShardCost, SplitOverhead
from autopar.core.stats import COUNTED_QUANTILE, quantile, rising_line
from autopar.executor.stages.split_backward import backward_input

LAYERS = (2, 12)
"""Of the two chains that tell the cost of a half from that of a weight in it."""
REPEATS = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class Halves:
    """Seconds of one backward of a chain.

    Attributes:
        weights: Weights of the chain.
        whole_s: In one go.
        input_s: Its first half.
        weight_s: Its second half.
    """

    weights: int
    whole_s: float
    input_s: float
    weight_s: float


def measure_split_overhead(weight_share: float) -> SplitOverhead:
    """Time both halves on two chains of tiny layers beside an undivided backward.

    Every weight is reached by a call of autograd of its own, which is most of the second half of
    a small stage.

    Args:
        weight_share: Part of an undivided backward that weight gradients are taken for.
    """
    return split_overhead([_time(layers) for layers in LAYERS], weight_share)


def split_overhead(found: Sequence[Halves], weight_share: float) -> SplitOverhead:
    """Cost per half and per weight in it, from a short and a long chain.

    Args:
        found: The short one first.
        weight_share: As above.
    """
    counts = [row.weights for row in found]
    first = [row.input_s - (1 - weight_share) * row.whole_s for row in found]
    second = [row.weight_s - weight_share * row.whole_s for row in found]
    lines = [rising_line(counts, seconds) for seconds in (first, second)]
    halves = [ShardCost(unit_s=fixed, weight_s=each) for fixed, each in lines]
    return SplitOverhead(first=halves[0], second=halves[1])


def _time(layers: int) -> Halves:
    parts: list[torch.nn.Module] = []
    for _ in range(layers):
        parts += [torch.nn.Linear(8, 8), torch.nn.GELU()]
    chain = torch.nn.Sequential(*parts)
    value = torch.randn(4, 8, requires_grad=True)
    rows: list[tuple[float, float, float]] = []
    for _ in range(REPEATS):
        output = chain(value)
        gradient = torch.ones_like(output)
        begin = time.perf_counter()
        torch.autograd.backward([output], [gradient])
        whole = time.perf_counter()
        output = chain(value)
        start = time.perf_counter()
        _, half = backward_input([output], [gradient], [value])
        between = time.perf_counter()
        half.run()
        rows.append((whole - begin, between - start, time.perf_counter() - between))
    whole_s, input_s, weight_s = (
        quantile(column, COUNTED_QUANTILE) for column in zip(*rows, strict=True)
    )
    weights = len(list(chain.parameters()))
    return Halves(weights=weights, whole_s=whole_s, input_s=input_s, weight_s=weight_s)
