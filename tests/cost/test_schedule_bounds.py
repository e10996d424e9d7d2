"""Bounds by schedule: never above the simulated time, tight for equal stages."""

from __future__ import annotations

import itertools

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autopar.cost.bounds.schedule import least_step_seconds
from autopar.cost.simulation.simulate import Program, compile_program, node_seconds, run, wire
from autopar.results import StageCost, Transfer
from autopar.schedules import SCHEDULES

Shape = tuple[int, int, int]
Case = tuple[str, Shape, list[StageCost]]
FREE_LINK_S = 1e-12
"""A message of no time would be no message, and its reader would not wait."""
SHAPES = [
    (name, shape)
    for name in SCHEDULES
    for shape in itertools.product(range(1, 6), range(1, 4), range(1, 21))
    if SCHEDULES.load(name).check(shape[0], shape[0] * shape[1], shape[2]) is None
]
SECONDS = st.floats(0.001, 1.0)


def simulated(program: Program, costs: list[StageCost]) -> float:
    transfers = [
        Transfer(
            producer=s, consumer=s + 1, forward_s=FREE_LINK_S, backward_s=FREE_LINK_S, size_bytes=1
        )
        for s in range(len(costs) - 1)
    ]
    return max(run(program, node_seconds(costs, program), wire(program, transfers)))


def least(name: str, shape: Shape, costs: list[StageCost]) -> float:
    ranks, chunks, microbatches = shape
    bound = least_step_seconds(
        name,
        ranks=ranks,
        chunks=chunks,
        microbatches=microbatches,
        forward_s=sum(c.forward_s for c in costs),
        backward_s=sum(c.backward_s + c.recompute_s for c in costs),
        largest_s=max(c.forward_s + c.backward_s + c.recompute_s for c in costs),
    )
    return float(bound)


@st.composite
def uneven(draw: st.DrawFn) -> Case:
    name, shape = draw(st.sampled_from(SHAPES))
    count = shape[0] * shape[1]
    rows = draw(st.lists(st.tuples(*[SECONDS] * 4), min_size=count, max_size=count))
    costs = [
        StageCost(forward_s=f, backward_s=b + w, weight_s=w, recompute_s=r) for f, b, w, r in rows
    ]
    return name, shape, costs


@settings(max_examples=500, deadline=None)
@given(case=uneven())
def test_no_bound_is_above_the_simulated_time(case: Case):
    name, shape, costs = case
    ranks, chunks, microbatches = shape
    program = compile_program(SCHEDULES.load(name), ranks, ranks * chunks, microbatches)
    time_s = simulated(program, costs) * (1 + 1e-9)
    assert least(name, shape, costs) <= time_s


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        (name, shape)
        for name in SCHEDULES
        for shape in [(2, 1, 8), (3, 1, 6), (3, 1, 2), (3, 2, 6), (2, 3, 4), (2, 2, 5)]
        if SCHEDULES.load(name).check(shape[0], shape[0] * shape[1], shape[2]) is None
    ],
)
def test_totals_bound_the_best_split_of_the_totals(name: str, shape: Shape):
    """Random stages are far above the bound; these are moved to where the step is shortest."""
    ranks, chunks, microbatches = shape
    stages = ranks * chunks
    program = compile_program(SCHEDULES.load(name), ranks, stages, microbatches)
    split = np.ones((3, stages)) / stages  # forward, input half, weight half

    def time_s(split: npt.NDArray[np.float64]) -> float:
        rows = zip(*split, strict=True)
        costs = [StageCost(forward_s=f, backward_s=i + w, weight_s=w) for f, i, w in rows]
        return simulated(program, costs)

    bound = least_step_seconds(
        name,
        ranks=ranks,
        chunks=chunks,
        microbatches=microbatches,
        forward_s=1.0,
        backward_s=2.0,
    )
    found = [time_s(split)]
    for rate in np.geomspace(0.1, 0.005, 60):
        slope = np.zeros_like(split)
        for node in np.ndindex(split.shape):
            moved = split.copy()
            moved[node] += 1e-6
            slope[node] = (time_s(moved) - found[-1]) / 1e-6
        split = split * np.exp(-rate * (slope - slope.mean(axis=1, keepdims=True)))
        split /= split.sum(axis=1, keepdims=True)
        found.append(time_s(split))
    assert float(bound) <= min(found) * (1 + 1e-9)
    assert float(bound) >= 0.75 * min(found)


def equal(stages: int) -> list[StageCost]:
    return [StageCost(forward_s=1.0, backward_s=2.0, weight_s=1.0)] * stages


@pytest.mark.parametrize(
    ("name", "chunks", "part"),
    [
        ("gpipe", 1, 1.0),
        ("1f1b", 1, 1.0),
        ("interleaved", 2, 0.97),
        ("looped_bfs", 2, 0.94),
        ("zero_bubble", 1, 0.98),
        ("interleaved_zb", 2, 0.98),
        ("zbv", 2, 0.985),
        ("dualpipev", 2, 0.985),
    ],
)
def test_totals_alone_bound_eight_equal_ranks_closely(name: str, chunks: int, part: float):
    shape = (8, chunks, 64)
    costs = equal(8 * chunks)
    program = compile_program(SCHEDULES.load(name), 8, 8 * chunks, 64)
    assert least(name, shape, costs) >= part * simulated(program, costs) * (1 - 1e-9)


def test_arguments_broadcast():
    m = np.array([8.0, 16.0, 32.0])
    works: npt.NDArray[np.float64] = np.array([[1.0], [2.0]])
    for name in SCHEDULES:
        table = least_step_seconds(
            name, ranks=4, chunks=2, microbatches=m, forward_s=works, backward_s=2 * works
        )
        assert table.shape == (2, 3)
        for i, j in itertools.product(range(2), range(3)):
            one = least_step_seconds(
                name,
                ranks=4,
                chunks=2,
                microbatches=m[j],
                forward_s=works[i, 0],
                backward_s=2 * works[i, 0],
            )
            assert table[i, j] == one


def test_one_large_block_counts_for_every_microbatch():
    for name in SCHEDULES:
        bound = least_step_seconds(
            name, ranks=4, chunks=1, microbatches=8, forward_s=1, backward_s=2, largest_s=2.5
        )
        assert bound >= 8 * 2.5
