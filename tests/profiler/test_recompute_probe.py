"""What recompute costs besides the work that is done again."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
import torch

from autopar.core.stats import median
from autopar.profiler.timing import recompute_probe
from autopar.profiler.timing.recompute_probe import full_cost, selective_cost


def least_cpu_s(call: Callable[[], object], device: str, *, repeats: int) -> float:
    """Seconds of the processor, which other programs do not change much."""
    found = []
    for _ in range(repeats):
        start = time.process_time()
        call()
        found.append(time.process_time() - start)
    return min(found)


def test_a_dispatch_mode_around_every_op_costs_more_than_hooks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(recompute_probe, "time_call", least_cpu_s)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        pairs = [(full_cost("cpu", repeats=80), selective_cost("cpu", repeats=80)) for _ in "abc"]
    finally:
        torch.set_num_threads(threads)
    assert all(full.unit_s > 0 for full, _ in pairs)
    ratios = [selective.op_s / full.op_s for full, selective in pairs]
    assert median(ratios) > 1.5, ratios
