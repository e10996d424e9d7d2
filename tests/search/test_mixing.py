"""Per-block choices: the exact solver against brute force, and the bounds of all runs."""

from __future__ import annotations

import itertools
import math
import random
import time

import numpy as np
import pytest

from autopar.search.stages import knapsack
from autopar.search.stages.knapsack import Option
from autopar.search.stages.mixing import solve_stage
from autopar.search.stages.mixing_bounds import RunBounds


def brute_force(options: list[list[Option]], limit: float, copies: float) -> float:
    best = math.inf
    for chosen in itertools.product(*options):
        need = copies * sum(o.kept_bytes for o in chosen) + max(o.peak_bytes for o in chosen)
        if need <= limit:
            best = min(best, sum(o.seconds for o in chosen))
    return best


def random_blocks(rng: random.Random, *, kinds: int, blocks: int) -> list[list[Option]]:
    """Blocks of few kinds; whole numbers, so that ties and exact fits are frequent."""
    made = [
        [
            Option(
                seconds=rng.randint(0, 12),
                kept_bytes=rng.randint(0, 20),
                peak_bytes=rng.choice([0, 0, rng.randint(0, 15)]),
            )
            for _ in range(rng.randint(1, 4))
        ]
        for _ in range(kinds)
    ]
    return [rng.choice(made) for _ in range(blocks)]


@pytest.mark.parametrize("seed", range(300))
def test_equals_brute_force(seed: int) -> None:
    rng = random.Random(seed)
    options = random_blocks(rng, kinds=rng.randint(1, 5), blocks=rng.randint(1, 6))
    copies = rng.choice([1.0, 2.0, 5.0])
    limit = rng.uniform(0, copies * 20 * len(options)) + 0.5
    expected = brute_force(options, limit, copies)
    found = solve_stage(options, limit, copies)
    if found is None:
        assert math.isinf(expected)
        return
    assert found.seconds == pytest.approx(expected, abs=1e-9)
    assert found.bound == pytest.approx(expected, rel=1e-9, abs=1e-9)
    chosen = [block[pick] for block, pick in zip(options, found.picks, strict=True)]
    assert sum(o.seconds for o in chosen) == pytest.approx(found.seconds)
    assert found.need_bytes <= limit


@pytest.mark.parametrize("seed", range(40))
def test_run_bounds_never_exceed_the_optimum_and_equal_the_relaxation(seed: int) -> None:
    rng = random.Random(1000 + seed)
    options = random_blocks(rng, kinds=3, blocks=6)
    copies = rng.choice([1.0, 3.0])
    limits = np.array([[rng.uniform(0, 120) for _ in range(7)] for _ in range(7)])
    seconds, feasible = RunBounds(options).tables(limits, copies)
    for i, j in itertools.combinations(range(7), 2):
        exact = brute_force(options[i:j], limits[i, j], copies)
        assert seconds[i, j] <= exact + 1e-9
        if math.isfinite(exact):
            assert feasible[i, j]
        assert feasible[i, j] == math.isfinite(seconds[i, j])
        if all(o.peak_bytes == 0 for block in options[i:j] for o in block):
            assert feasible[i, j] == math.isfinite(exact)
            if feasible[i, j]:
                groups = [knapsack.Group.of(block, (0,), 0.0) for block in options[i:j]]
                relaxed = knapsack.Knapsack(groups=groups, room_bytes=limits[i, j] / copies)
                assert seconds[i, j] == pytest.approx(relaxed.relaxation, abs=1e-9)


def layers(count: int) -> list[list[Option]]:
    """Transformer layers: recompute none, selective, full; in seconds and bytes of GPT-3."""
    layer = [
        Option(seconds=0.0, kept_bytes=1.83e9),
        Option(seconds=0.9e-3, kept_bytes=0.85e9),
        Option(seconds=23e-3, kept_bytes=50e6),
    ]
    edge = [Option(seconds=0.0, kept_bytes=50e6), Option(seconds=1e-3, kept_bytes=40e6)]
    return [edge, *([layer] * count), edge]


def test_equal_layers_are_counted_not_enumerated() -> None:
    began = time.perf_counter()
    found = solve_stage(layers(96), 96 * 1.0e9)
    assert time.perf_counter() - began < 0.5
    assert found is not None
    # Between selective everywhere (81.7 GB) and none everywhere: 14 layers need not recompute.
    assert found.bound == pytest.approx(found.seconds)
    counts = [found.picks[1:-1].count(option) for option in range(3)]
    best = min(
        (b * 0.9e-3 + c * 23e-3 + edges * 1e-3)
        for b in range(97)
        for c in range(97 - b)
        for edges in range(3)
        if (96 - b - c) * 1.83e9 + b * 0.85e9 + c * 50e6 + 100e6 - edges * 10e6 <= 96e9
    )
    assert found.seconds == pytest.approx(best)
    assert sum(counts) == 96
    assert counts[0] > 0
    assert counts[1] > 0


def test_slow_options_go_to_the_blocks_that_backward_reaches_last() -> None:
    found = solve_stage(layers(6), 6 * 1.2e9)
    assert found is not None
    levels = found.picks[1:-1]
    assert list(levels) == sorted(levels, reverse=True)
    assert len(set(levels)) > 1


def test_a_peak_counts_once_per_stage() -> None:
    block = [
        Option(seconds=0.0, kept_bytes=10.0),
        Option(seconds=1.0, kept_bytes=1.0, peak_bytes=9.0),
    ]
    # Recomputing one block frees nothing, since its peak takes what it no longer keeps.
    assert solve_stage([block], 9.9) is None
    found = solve_stage([block] * 3, 21.5)
    assert found is not None
    assert sorted(found.picks) == [0, 1, 1]
    assert found.need_bytes == pytest.approx(21.0)


def test_a_stage_of_different_blocks_is_proved_best() -> None:
    rng = random.Random(7)
    options = [
        [
            Option(seconds=0.0, kept_bytes=rng.uniform(50, 100)),
            Option(seconds=rng.uniform(1, 2), kept_bytes=rng.uniform(25, 50)),
            Option(seconds=rng.uniform(3, 8), kept_bytes=rng.uniform(1, 5)),
        ]
        for _ in range(54)
    ]
    began = time.perf_counter()
    found = solve_stage(options, 54 * 40.0)
    assert time.perf_counter() - began < 2.0
    assert found is not None
    assert found.bound == pytest.approx(found.seconds, rel=1e-9)


def test_when_states_run_out_the_bound_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(3)
    options = [
        [
            Option(seconds=0.0, kept_bytes=float(size)),
            Option(seconds=float(size), kept_bytes=0.0),
        ]
        for size in (rng.randint(10**5, 10**6) for _ in range(14))
    ]
    limit = 0.37 * sum(block[0].kept_bytes for block in options) + 0.5
    exact = solve_stage(options, limit)
    monkeypatch.setattr(knapsack, "MAX_STATES", 4)
    monkeypatch.setattr(knapsack, "_BEAM", 4)
    found = solve_stage(options, limit)
    assert exact is not None
    assert found is not None
    assert exact.seconds == pytest.approx(brute_force(options, limit, 1.0))
    assert exact.bound == pytest.approx(exact.seconds)
    assert found.bound <= exact.seconds <= found.seconds
    assert found.bound < found.seconds


def test_all_runs_of_a_large_model_take_milliseconds() -> None:
    options = layers(96)
    bounds = RunBounds(options)
    limits = np.full((99, 99), 30e9)
    bounds.tables(limits)
    began = time.perf_counter()
    for copies in range(1, 11):
        bounds.tables(limits, copies)
    assert (time.perf_counter() - began) / 10 < 5e-3


def test_the_empty_stage_needs_nothing() -> None:
    found = solve_stage([], 1.0)
    assert found is not None
    assert (found.picks, found.seconds, found.need_bytes) == ((), 0.0, 0.0)
