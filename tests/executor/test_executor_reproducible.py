"""What docs/own-loop.md says about the same run twice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import executor_helpers as helpers
import executor_models as models
import pytest
from executor_ranks import on_ranks

import autopar

SHAPES: dict[str, dict[str, Any]] = {
    "dp2": {"dp": 2, "microbatches": 2},
    "pp2": {"pp": 2, "microbatches": 4},
}


@pytest.mark.parametrize("shape", SHAPES)
def test_the_same_plan_twice_gives_the_same_bits(shape: str, tmp_path: Path) -> None:
    task = models.knotted(dropout=0.2)
    plan = helpers.make_plan(task, **SHAPES[shape])
    first, second = (helpers.run(plan, task, tmp_path / n, steps=3).losses for n in "ab")
    assert first == second


def test_replicas_and_pipeline_with_the_same_microbatches(tmp_path: Path) -> None:
    """BatchNorm, tied weights, AdamW; no dropout, whose masks belong to a replica and stage."""
    task = models.knotted(dropout=0.0)
    curves = [
        helpers.run(helpers.make_plan(task, **k), task, tmp_path / n, steps=4, warmup=0).losses
        for n, k in SHAPES.items()
    ]
    assert curves[0] == pytest.approx(curves[1], rel=1e-6)


def test_a_session_draws_the_same_dropout_as_a_run(tmp_path: Path) -> None:
    task = models.mlp(dropout=0.3)
    plan = helpers.make_plan(task, **SHAPES["dp2"])
    record = helpers.run(plan, task, tmp_path, steps=3, warmup=0)

    def rank(number: int) -> list[float]:
        from autopar.executor.data import ReplicaData

        data = ReplicaData(
            task, seed=plan.seed, split="contiguous", shares=[plan.global_batch], microbatches=1
        )
        with autopar.parallelize(task, plan) as session:
            return [session.step(*session.part(*data.microbatches(s, 0)[0])) for s in range(3)]

    losses, _ = on_ranks(2, rank)
    assert losses == list(record.losses)
