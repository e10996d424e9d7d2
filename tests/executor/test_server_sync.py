"""Synchronous servers make the steps of one process."""

from __future__ import annotations

import statistics
import time
from pathlib import Path

import pytest
import server_helpers as helpers
import torch


def worker(made: list[helpers.Server], rank: int, ranks: int, steps: int, out: Path, **options):
    clips = options.pop("clips", False)
    own = helpers.gang(made, rank, helpers.ENTRIES, **options)
    flat = helpers.weights()
    if rank == 0:
        own.set_weights(flat, 0, 1.0, {})
    else:
        own.next_generation()
    into = torch.empty_like(flat)
    for step in range(steps):
        gradient = helpers.gradient(rank, step)
        own.exchange(step, gradient, set(), start=step + 1, into=into, clips=clips)
    torch.save(into, out / f"{rank}.pt")
    own.leave()
    own.close()


def run(tmp_path: Path, made: list[helpers.Server], ranks: int, steps: int, **options) -> None:
    pids = [
        helpers.fork(lambda r=r: worker(made, r, ranks, steps, tmp_path, **options))
        for r in range(ranks)
    ]
    assert helpers.join(pids) == [0] * ranks


def mean(ranks: int, step: int) -> torch.Tensor:
    return torch.stack([helpers.gradient(r, step) for r in range(ranks)]).mean(0)


@pytest.mark.parametrize(
    ("ranks", "servers", "clip", "make"),
    [
        (2, 2, None, helpers.sgd),
        (4, 4, 0.7, helpers.adam),
        (4, 2, 0.7, helpers.sgd),
        (2, 1, 100.0, helpers.adam),
    ],
)
def test_rounds_are_the_steps_of_one_process(tmp_path, ranks, servers, clip, make) -> None:
    with helpers.servers(servers, "sync", ranks, make, clips=clip) as made:
        run(tmp_path, made, ranks, 4, clips=clip is not None)
        assert helpers.join([s.pid for s in made]) == [0] * servers  # they end by themselves
    reference = helpers.Reference(make, clip)
    for step in range(4):
        reference.step(mean(ranks, step))
    for rank in range(ranks):
        found = torch.load(tmp_path / f"{rank}.pt")
        torch.testing.assert_close(found, reference.flat, rtol=1e-6, atol=1e-6)


def test_small_answers_do_not_wait_for_a_delayed_acknowledgement() -> None:
    """Nagle's algorithm holds the tensors of an answer back for 40 ms after its header."""
    times_s = []
    with helpers.servers(1, "sync", 1) as made:
        own = helpers.gang(made, 0, helpers.ENTRIES)
        into = helpers.weights()
        own.set_weights(into, 0, 1.0, {})
        for step in range(60):
            began_s = time.perf_counter()
            own.exchange(step, helpers.gradient(0, step), set(), start=step + 1, into=into)
            times_s.append(time.perf_counter() - began_s)
        own.leave()
        own.close()
    assert statistics.median(times_s[30:]) < 0.03  # the first ones are acknowledged at once
