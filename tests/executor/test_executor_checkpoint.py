"""Interrupted and resumed runs, under the same plan and under another one."""

from __future__ import annotations

import dataclasses
import pickle
from pathlib import Path
from typing import Any

import executor_helpers as helpers
import executor_models as models
import pytest
import torch

from autopar.core.errors import InputError
from autopar.executor.checkpointing.checkpoint import find_checkpoint
from autopar.tasks import Task

SHAPES: dict[str, dict[str, Any]] = {
    "dp2": {"dp": 2, "microbatches": 2},
    "pp2": {"pp": 2, "microbatches": 4},
    "single": {"microbatches": 4},
    "zero1": {"shard": 2, "zero": 1, "units": 3, "microbatches": 2},
    "zero3": {"shard": 2, "zero": 3, "units": 3, "microbatches": 2},
    "zero2 pp2": {"shard": 2, "zero": 2, "pp": 2, "units": 2, "microbatches": 2},
}


def run(task: Task, shape: str, out: Path, **options: Any) -> tuple[float, ...]:
    plan = helpers.make_plan(task, **SHAPES[shape])
    return helpers.run(plan, task, out, warmup=0, **options).losses


@pytest.mark.parametrize("shape", ["dp2", "pp2", "zero2 pp2"])
def test_resumed_run_repeats_the_uninterrupted_one(shape: str, tmp_path: Path) -> None:
    task = models.knotted(dropout=0.2)
    whole = run(task, shape, tmp_path / "whole", steps=5)
    first = run(task, shape, tmp_path / "first", steps=3, checkpoint_every=2)
    rest = run(task, shape, tmp_path / "rest", steps=3, resume=tmp_path / "first" / "checkpoints")
    assert first == whole[:3]
    assert rest == whole[2:]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("dp2", "pp2"),
        ("pp2", "dp2"),
        ("pp2", "single"),
        ("zero3", "single"),
        ("single", "zero2 pp2"),
        ("zero2 pp2", "zero1"),
        ("zero1", "dp2"),
    ],
)
def test_resume_under_another_plan(before: str, after: str, tmp_path: Path) -> None:
    task = models.knotted(dropout=0.0)
    whole = run(task, before, tmp_path / "whole", steps=5, checkpoint_every=3)
    rest = run(task, after, tmp_path / "rest", steps=2, resume=tmp_path / "whole" / "checkpoints")
    assert rest == pytest.approx(whole[3:], rel=1e-5)


def test_a_scheduler_goes_on_where_it_was(tmp_path: Path) -> None:
    """A warm-up, a decay, and milestones, under another plan too."""

    def scheduler(optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
        kinds = torch.optim.lr_scheduler
        return kinds.SequentialLR(
            optimizer,
            [kinds.LinearLR(optimizer, 0.1, total_iters=2), kinds.MultiStepLR(optimizer, [1, 2])],
            milestones=[2],
        )

    task = dataclasses.replace(models.mlp(), scheduler=scheduler)
    whole = run(task, "dp2", tmp_path / "whole", steps=6, checkpoint_every=3)
    resume = tmp_path / "whole" / "checkpoints" / "step-3"
    for shape in ("dp2", "pp2"):
        rest = run(task, shape, tmp_path / shape, steps=3, resume=resume)
        assert rest == pytest.approx(whole[3:], rel=1e-6)
    constant = run(models.mlp(), "dp2", tmp_path / "constant", steps=3, resume=resume)
    assert constant != pytest.approx(whole[3:], rel=1e-3)


def test_checkpoint_is_complete_or_absent(tmp_path: Path) -> None:
    task = models.mlp()
    run(task, "dp2", tmp_path, steps=4, checkpoint_every=2)
    folder = tmp_path / "checkpoints"
    assert sorted(p.name for p in folder.iterdir()) == ["latest", "step-2", "step-4"]
    assert find_checkpoint(folder).name == "step-4"
    assert find_checkpoint(folder / "step-2").name == "step-2"
    (folder / "latest").write_text("../elsewhere\n")
    with pytest.raises(InputError, match="no complete checkpoint"):
        find_checkpoint(folder)


def test_checkpoint_of_another_model_or_seed(tmp_path: Path) -> None:
    run(models.mlp(), "dp2", tmp_path / "a", steps=1, checkpoint_every=1)
    resume = tmp_path / "a" / "checkpoints"
    with pytest.raises(InputError, match="is a checkpoint of 'mlp'"):
        run(models.knotted(), "dp2", tmp_path / "b", steps=1, resume=resume)
    with pytest.raises(InputError, match="no checkpoint in"):
        run(models.mlp(), "dp2", tmp_path / "b", steps=1, resume=tmp_path)
    plan = dataclasses.replace(helpers.make_plan(models.mlp(), **SHAPES["dp2"]), seed=9)
    record = helpers.run(plan, models.mlp(), tmp_path / "c", resume=resume, steps=1)
    assert any("seed was 0" in text for text in record.warnings)


def test_an_index_that_would_run_code_is_refused(tmp_path: Path) -> None:
    run(models.mlp(), "dp2", tmp_path / "a", steps=1, checkpoint_every=1)
    step = find_checkpoint(tmp_path / "a" / "checkpoints")

    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return (open, (str(tmp_path / "hacked"), "w"))

    (step / ".metadata").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(InputError, match="not allowed"):
        run(models.mlp(), "dp2", tmp_path / "b", steps=1, resume=step)
    assert not (tmp_path / "hacked").exists()
