"""Every plan of every awkward model must compute what one process computes."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import executor_helpers as helpers
import executor_models as models
import pytest

from autopar.tasks import Task
from autopar.trace import TracedTask

TASKS: dict[str, Callable[[], Task]] = {
    "mlp": models.mlp,
    "knotted": models.knotted,
    "unet": models.unet,
}


@pytest.fixture(scope="module")
def traces() -> dict[str, TracedTask]:
    return {name: helpers.traced_of(make()) for name, make in TASKS.items()}


SHAPES: dict[str, dict[str, Any]] = {
    "dp2": {"dp": 2, "microbatches": 1},
    "dp2 accumulate": {"dp": 2, "microbatches": 3, "bucket_bytes": 256},
    "pp2 1f1b": {"pp": 2},
    "pp2 gpipe clip": {"pp": 2, "schedule": "gpipe", "clip_norm": 0.05},
    "pp2 interleaved": {"pp": 2, "stages": 4, "schedule": "interleaved"},
    "pp2 looped_bfs": {"pp": 2, "stages": 4, "schedule": "looped_bfs", "microbatches": 3},
    "dp2 pp2 clip": {"dp": 2, "pp": 2, "bucket_bytes": 256, "clip_norm": 0.05},
}


@pytest.mark.parametrize(
    ("name", "shape"),
    [*(("knotted", shape) for shape in SHAPES), ("unet", "dp2"), ("unet", "dp2 pp2 clip")],
)
def test_plan_equals_one_process(
    name: str, shape: str, traces: dict[str, TracedTask], tmp_path: Path
) -> None:
    task = TASKS[name]()
    plan = helpers.make_plan(task, traced=traces[name], **SHAPES[shape])
    record = helpers.run(plan, task, tmp_path, verify=True)
    assert record.verify is not None
    assert record.verify.passed, record.verify
    assert len(record.losses) == 3


@pytest.mark.parametrize("seed", range(6))
def test_random_cuts(seed: int, traces: dict[str, TracedTask], tmp_path: Path) -> None:
    chooser = random.Random(seed)
    name = chooser.choice(["knotted", "unet"])
    task, traced = TASKS[name](), traces[name]
    chunks = chooser.choice([1, 2])
    cuts = tuple(sorted(chooser.sample(sorted(traced.cuts), 2 * chunks - 1)))
    recompute = {}
    edges = [0, *cuts, len(traced.nodes)]
    for stage in range(2 * chunks):
        legal = sorted(c for c in {*traced.cuts, *edges} if edges[stage] <= c <= edges[stage + 1])
        if chooser.random() < 0.5 and len(legal) > 1:
            first, stop = sorted(chooser.sample(legal, 2))
            recompute[stage] = ((first, stop),)
    schedule = "interleaved" if chunks == 2 else chooser.choice(["1f1b", "gpipe"])
    plan = helpers.make_plan(
        task,
        traced=traced,
        cuts=cuts,
        pp=2,
        recompute=recompute,
        schedule=schedule,
        microbatches=chooser.choice([2, 4]),
    )
    record = helpers.run(plan, task, tmp_path, verify=True, steps=1, warmup=0)
    assert record.verify is not None
    assert record.verify.passed, (name, cuts, recompute, record.verify)


def test_recompute_on_one_rank_equals_the_eager_run(
    traces: dict[str, TracedTask], tmp_path: Path
) -> None:
    """Dropout masks and BatchNorm buffers too: training losses, not one verified step."""
    task = models.knotted(dropout=0.3)
    traced = helpers.traced_of(task)
    middle = helpers.even_cuts(traced, 3)
    plan = helpers.make_plan(task, traced=traced, recompute={0: (middle,)}, microbatches=2)
    eager = helpers.make_plan(task, traced=traced, microbatches=2)
    assert "rc" in plan.name
    again = helpers.run(plan, task, tmp_path / "a", verify=True, steps=3)
    plain = helpers.run(eager, task, tmp_path / "b", steps=3)
    assert again.verify is not None
    assert again.verify.passed
    assert again.breakdown.recompute_s > 0
    assert plain.breakdown.recompute_s == 0
    assert again.losses == pytest.approx(plain.losses, rel=1e-5)


def test_recompute_on_replicas(traces: dict[str, TracedTask], tmp_path: Path) -> None:
    """DDP around checkpointed ranges; BatchNorm, tied weights and a parameter without use."""
    for name in ("knotted", "unet"):
        traced = traces[name]
        first, stop = helpers.even_cuts(traced, 3)
        plan = helpers.make_plan(
            TASKS[name](),
            traced=traced,
            dp=2,
            microbatches=2,
            recompute={0: ((0, first), (first, stop))},
        )
        record = helpers.run(plan, TASKS[name](), tmp_path / name, verify=True)
        assert record.verify is not None
        assert record.verify.passed, record.verify
        assert record.breakdown.recompute_s > 0
        assert {e.kind for e in record.timeline.events} >= {"forward", "recompute", "sync"}


def test_every_plan_draws_the_same_loss_curve(
    traces: dict[str, TracedTask], tmp_path: Path
) -> None:
    task = models.mlp()
    curves = []
    for i, shape in enumerate(
        [
            {"microbatches": 4},
            {"dp": 2, "microbatches": 2, "data_split": "shard"},
            {"pp": 2, "data_split": "contiguous"},
            {"dp": 2, "pp": 2, "microbatches": 2},
        ]
    ):
        plan = helpers.make_plan(task, traced=traces["mlp"], **shape)
        curves.append(helpers.run(plan, task, tmp_path / str(i), steps=4).losses)
    for curve in curves[1:]:
        assert curve == pytest.approx(curves[0], rel=1e-6)


def test_a_wrong_gradient_is_noticed(traces: dict[str, TracedTask], tmp_path: Path) -> None:
    """The check can fail: a model that draws random numbers of its own is not reproducible."""

    class Noisy(models.Mlp):
        def forward(self, x: Any) -> Any:
            import torch

            return super().forward(x + 1e-2 * torch.randn_like(x))

    quiet = models.mlp()
    task = Task(
        name="noisy",
        model=lambda: Noisy(8, 4, 0.0),
        batch=quiet.batch,
        loss=quiet.loss,
        optimizer=quiet.optimizer,
    )
    plan = helpers.make_plan(task, pp=2)
    record = helpers.run(plan, task, tmp_path, verify=True)
    assert record.verify is not None
    assert not record.verify.passed
    assert record.verify.grad_rel > 1e-4


def test_a_model_that_export_cannot_capture_runs_data_parallel(tmp_path: Path) -> None:
    task = models.branching()
    stand_in = helpers.traced_of(models.mlp())
    plan = helpers.make_plan(task, traced=stand_in, dp=2, microbatches=3)
    record = helpers.run(plan, task, tmp_path, verify=True)
    assert record.verify is not None
    assert record.verify.passed, record.verify
    assert any("cannot check" in text for text in record.warnings)


def test_training_on_a_dataset(tmp_path: Path) -> None:
    task = models.points()
    traced = helpers.traced_of(task)
    shapes: list[dict[str, Any]] = [{"dp": 2, "microbatches": 2}, {"pp": 2}, {"microbatches": 4}]
    curves = [
        helpers.run(
            helpers.make_plan(task, traced=traced, **shape), task, tmp_path / str(i), steps=4
        ).losses
        for i, shape in enumerate(shapes)
    ]
    assert curves[1] == pytest.approx(curves[0], rel=1e-6)
    assert curves[2] == pytest.approx(curves[0], rel=1e-6)
