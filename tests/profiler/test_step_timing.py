"""Windows over passes, steps of a whole model, and the memory of a process that traced."""

from __future__ import annotations

import os
import sys

import pytest
import torch

from autopar.core.errors import EnvironmentUnableError
from autopar.core.stats import mean, trimmed_mean
from autopar.profiler.speed_probe import reference_seconds
from autopar.profiler.timing import step_timing
from autopar.profiler.timing.blocks import Samples, windows
from autopar.profiler.timing.policy import MeasurePolicy
from autopar.profiler.timing.resident import measure_resident
from autopar.profiler.timing.step_timing import Eager, time_steps
from autopar.tasks import resolve, small_target

QUICK = MeasurePolicy(warmup=1, fewest_repeats=3, most_repeats=3, point_s=0.01)


def test_a_window_lasts_as_long_as_asked_and_nothing_is_lost():
    passes = [(0.6, 0.4)] * 7
    found = windows(passes, 3.0)
    assert [len(window) for window in found] == [3, 4]
    assert windows(passes, 0.0) == [[pair] for pair in passes]
    assert windows(passes[:2], 9.0) == [passes[:2]]


def test_on_a_crowded_host_short_passes_pay_for_the_turns_they_wait():
    """Nine passes run undisturbed, the tenth waits for a turn: 1.9 ms each, not 1 ms."""
    seconds = (*[1e-3] * 9, 10e-3) * 10
    samples = Samples(forward_s=seconds, backward_s=seconds)
    assert samples.typical(0.25, 0.0) == (pytest.approx(1e-3), pytest.approx(1e-3))
    forward, backward = samples.typical(0.25, 0.038)
    assert forward == backward == pytest.approx(1.9e-3)


def test_trimmed_mean_leaves_the_ends_out():
    assert mean([1.0, 2.0, 6.0]) == 3.0
    assert trimmed_mean([1.0] * 9 + [2.0, 1000.0]) == pytest.approx(1.1)


def test_a_step_trains_the_users_own_module(monkeypatch):
    monkeypatch.setattr(step_timing, "PAUSE_S", 0.0)
    model = Eager(resolve(small_target("mlp")), 4, "cpu")
    before = [p.detach().clone() for p in model.parameters]
    meetings: list[None] = []
    found = time_steps(
        model,
        torch.optim.SGD(model.parameters, lr=0.1),
        "cpu",
        QUICK,
        agree=lambda value: value,
        align=lambda: meetings.append(None),
    )
    assert found is not None and len(found.forward_s) == 3 == len(meetings)
    assert min(*found.forward_s, *found.backward_s, *found.optimizer_s) > 0
    moved = [not torch.equal(a, b) for a, b in zip(before, model.parameters, strict=True)]
    assert any(moved)
    assert all(p.grad is None for p in model.parameters)


def test_a_model_that_takes_too_long_is_not_timed():
    model = Eager(resolve(small_target("mlp")), 4, "cpu")
    policy = MeasurePolicy(warmup=1, longest_pass_s=0.0)
    found = time_steps(model, None, "cpu", policy, agree=lambda v: v, align=lambda: None)
    assert found is None


def test_memory_of_a_fresh_process_that_traced(monkeypatch):
    assert 50e6 < measure_resident(small_target("mlp")) < 3e9
    monkeypatch.setattr(sys, "executable", "false")
    with pytest.raises(EnvironmentUnableError, match="memory of a process failed"):
        measure_resident(small_target("mlp"))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_the_reference_loop_runs_on_every_rank():
    assert 1e-4 < reference_seconds(2) < 10
