"""Replicas of different share, and losses over different numbers of items."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import executor_helpers as helpers
import executor_models as models
import pytest
import torch
from executor_ranks import on_ranks
from torch.nn import functional as F

import autopar
from autopar.core.errors import InputError, TrainingError
from autopar.plans import Mesh
from autopar.tasks import Task

PADDING = -100


def padded(counts: bool = True) -> Task:
    """Next-token loss over rows whose second half is padding for a growing part of the batch."""
    tied = models.knotted(dropout=0.0)

    def batch(n: int, g: torch.Generator) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        tokens = torch.randint(0, 30, (n, 5), generator=g)
        lengths = torch.randint(1, 6, (n, 1), generator=g)
        target = tokens.roll(1, 1).masked_fill(torch.arange(5) >= lengths, PADDING)
        return {"tokens": tokens}, target

    def loss(out: tuple[torch.Tensor, torch.Tensor], target: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(out[0].flatten(0, 1), target.flatten(), ignore_index=PADDING)

    return replace(
        tied,
        name="padded",
        model=Plain,
        batch=batch,
        loss=loss,
        optimizer=lambda p: torch.optim.SGD(p, lr=0.5),
        weight=(lambda target: (target != PADDING).sum()) if counts else None,
    )


class Plain(torch.nn.Module):
    """No BatchNorm: its result for the whole batch is that of its parts."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(30, 8)
        self.blocks = torch.nn.ModuleList(torch.nn.Linear(8, 8) for _ in range(3))
        self.head = torch.nn.Linear(8, 30)

    def forward(self, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        hidden = self.embedding(tokens)
        for block in self.blocks:
            hidden = hidden + torch.tanh(block(hidden))
        return self.head(hidden), hidden


SHAPES: dict[str, dict[str, Any]] = {
    "dp2": {"dp": 2, "microbatches": 2},
    "dp2 clip": {"dp": 2, "microbatches": 3, "bucket_bytes": 256, "clip_norm": 0.05},
    "dp2 recompute": {"dp": 2, "microbatches": 2, "recompute": {0: ((0, 4),)}},
    "dp2 pp2": {"dp": 2, "pp": 2, "microbatches": 2},
    "server": {"dp": 2, "microbatches": 2, "sync": "ps_sync"},
    "zero3": {"mesh": Mesh(dp_shard=2), "zero": 3, "microbatches": 2},
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", ["knotted", "padded"])
def test_uneven_shares_equal_one_process(name: str, shape: str, tmp_path: Path) -> None:
    """BatchNorm takes the statistics of each replica's own microbatches on both sides."""
    task = padded() if name == "padded" else models.knotted(dropout=0.0)
    plan = helpers.make_plan(task, **SHAPES[shape], microbatch_size=2, batch_shares=(3, 1))
    assert "b3+1" in plan.name
    record = helpers.run(plan, task, tmp_path, verify=True, steps=1)
    assert record.verify is not None
    assert record.verify.passed, record.verify


@pytest.mark.parametrize("shape", ["dp2", "dp2 pp2"])
@pytest.mark.parametrize("shares", [(), (3, 1)])
def test_items_count_alike_in_the_whole_batch(shape: str, shares: tuple[int, ...]) -> None:
    """Against one process that takes the whole batch at once, which knows no microbatches."""
    task = padded()
    plan = helpers.make_plan(task, **SHAPES[shape], batch_shares=shares)
    batches = [task.batch(8, torch.Generator().manual_seed(step)) for step in range(3)]

    def rank(number: int) -> tuple[list[float], dict[str, torch.Tensor]]:
        with autopar.parallelize(task, plan) as session:
            losses = [session.step(*session.part(*batch)) for batch in batches]
            return losses, session.state_dict()

    (losses, weights), *_ = on_ranks(plan.world_size, rank)
    torch.manual_seed(0)
    model = Plain()
    optimizer = task.optimizer(model.parameters())
    expected = []
    for inputs, target in batches:
        loss = task.loss(model(**inputs), target)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
        expected.append(float(loss.detach()))
    assert losses == pytest.approx(expected, rel=1e-5)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(weights[name], value, rtol=1e-4, atol=1e-6)


def test_without_weight_items_of_short_microbatches_count_more(tmp_path: Path) -> None:
    """The test above can fail: samples, not items, count alike without ``Task.weight``."""
    curves = []
    for counts in (True, False):
        task = padded(counts)
        plan = helpers.make_plan(task, dp=2, microbatches=2)
        curves.append(helpers.run(plan, task, tmp_path / str(counts), steps=2).losses)
    assert curves[0] != pytest.approx(curves[1], rel=1e-3)


def test_uneven_shares_draw_the_same_loss_curve(tmp_path: Path) -> None:
    task = models.mlp()
    curves = [
        helpers.run(
            helpers.make_plan(task, **SHAPES["dp2"], batch_shares=shares, data_split=split),
            task,
            tmp_path / f"{split}{len(shares)}",
            steps=4,
        ).losses
        for shares, split in (((), "random"), ((1, 3), "random"), ((3, 1), "shard"))
    ]
    assert curves[1] == pytest.approx(curves[0], rel=1e-6)
    assert curves[2] == pytest.approx(curves[0], rel=1e-6)


def test_counts_that_are_none_are_refused(tmp_path: Path) -> None:
    for weight, message in [
        (lambda target: None, "weight.target. returned None"),
        (lambda target: -1, "weight.target. returned -1"),
        (lambda target: 0, "counts no item in a whole global batch"),
    ]:
        task = replace(models.mlp(), weight=weight)
        plan = helpers.make_plan(task, dp=2)
        with pytest.raises((InputError, TrainingError), match=message):
            helpers.run(plan, task, tmp_path)


def test_experts_take_equal_shares_only() -> None:
    from autopar.executor.supported import check_supported

    plan = helpers.make_plan(
        models.mlp(), mesh=Mesh(dp_replicate=2, ep=2), batch_shares=(3, 1), microbatch_size=2
    )
    with pytest.raises(InputError, match="batch_shares with ep=2"):
        check_supported(plan)


def test_what_does_not_go_with_a_sync_mode_is_told(tmp_path: Path) -> None:
    decay = replace(
        models.mlp(), scheduler=lambda o: torch.optim.lr_scheduler.ExponentialLR(o, 0.9)
    )
    for task, sync, message in [
        (decay, "ps_sync", "parameter servers, which keep their learning rate"),
        (padded(), "ps_async", "do not wait for each other to sum them"),
    ]:
        with pytest.raises((InputError, TrainingError), match=message):
            helpers.run(helpers.make_plan(task, dp=2, sync=sync), task, tmp_path / sync)
    task = padded()
    plan = helpers.make_plan(task, dp=2, sync="local_sgd:2")
    record = helpers.run(plan, task, tmp_path / "local")
    assert any("ranks meet for one number" in text for text in record.warnings)
