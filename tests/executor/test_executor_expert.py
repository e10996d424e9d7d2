"""Experts shared out over ranks compute what one process computes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import executor_helpers as helpers
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from autopar.plans import Mesh
from autopar.tasks import Task
from autopar.tasks.resolve import resolve
from autopar.tasks.zoo.small import small_target
from autopar.trace import TracedTask

SHAPES: dict[str, dict[str, Any]] = {
    "dp2 ep2": {"mesh": Mesh(dp_replicate=2, ep=2), "microbatches": 2},
    "dp4 ep2 clip": {"mesh": Mesh(dp_replicate=4, ep=2), "clip_norm": 0.05},
    "dp2 ep2 small buckets": {"mesh": Mesh(dp_replicate=2, ep=2), "bucket_bytes": 4096},
    "zero3 dp2 ep2": {"mesh": Mesh(dp_shard=2, ep=2), "zero": 3, "clip_norm": 0.05},
    "zero2 dp2x2 ep2": {"mesh": Mesh(dp_replicate=2, dp_shard=2, ep=2), "zero": 2},
    "zero bubble ep2": {
        "mesh": Mesh(dp_replicate=2, pp=2, ep=2),
        "schedule": "zero_bubble",
        "microbatches": 2,
    },
    "dp2 pp2 ep2": {"mesh": Mesh(dp_replicate=2, pp=2, ep=2), "microbatches": 2},
}


@pytest.fixture(scope="module")
def moe() -> tuple[Task, TracedTask]:
    pytest.importorskip("transformers")
    task = resolve(small_target("moe"))
    return task, helpers.traced_of(task)


@pytest.mark.parametrize("shape", SHAPES)
def test_moe_equals_one_process(shape: str, moe: tuple[Task, TracedTask], tmp_path: Path) -> None:
    task, traced = moe
    plan = helpers.make_plan(task, traced=traced, **SHAPES[shape])
    record = helpers.run(plan, task, tmp_path, verify=True, steps=1, warmup=1)
    assert record.verify is not None
    assert record.verify.passed, record.verify


class Sorted(nn.Module):
    """Dense experts on every token: biases inside and after products, views, a shared gate."""

    def __init__(self, experts: int = 4, width: int = 8) -> None:
        super().__init__()
        self.up = nn.Parameter(torch.randn(experts, width, 2 * width) * 0.3)
        self.up_bias = nn.Parameter(torch.randn(experts, 1, 2 * width))
        self.middle = nn.Parameter(torch.randn(experts, width, width) * 0.3)
        self.middle_bias = nn.Parameter(torch.randn(experts, 1, width))
        self.down = nn.Parameter(torch.randn(experts, width, width) * 0.3)
        self.norm = nn.LayerNorm(width)
        self.register_buffer("scale", torch.arange(1.0, experts + 1)[:, None, None])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        experts, width = self.up.shape[:2]
        tokens = x.expand(experts, *x.shape) * self.scale
        value, gate = torch.baddbmm(self.up_bias, tokens, self.up).chunk(2, -1)
        hidden = (
            value.view(experts, -1, 2, width // 2).flip(2).reshape(value.shape) * gate.sigmoid()
        )
        hidden = torch.bmm(self.norm(hidden), self.middle) + self.middle_bias
        hidden = torch.bmm(torch.tanh(hidden) + tokens, self.down)
        return hidden.mean(0)


def sorted_experts(experts: int = 4) -> Task:
    return Task(
        name="sorted",
        model=lambda: Sorted(experts),
        batch=lambda n, g: (torch.randn(n, 8, generator=g), torch.randn(n, 8, generator=g)),
        loss=F.mse_loss,
        optimizer=lambda params: torch.optim.SGD(params, lr=0.1),
    )


@pytest.mark.parametrize("pp", [1, 2])
def test_ops_between_products(pp: int, tmp_path: Path) -> None:
    """What can work on a rank's experts does; what cannot (flip, a skip) gets its values home."""
    task = sorted_experts()
    plan = helpers.make_plan(
        task, mesh=Mesh(dp_replicate=2, pp=pp, ep=2), microbatches=2, clip_norm=0.1
    )
    record = helpers.run(plan, task, tmp_path, verify=True, steps=1, warmup=1)
    assert record.verify is not None
    assert record.verify.passed, record.verify


LIKE: dict[str, dict[str, Any]] = {
    "ep2": {"mesh": Mesh(dp_replicate=2, ep=2), "microbatches": 2},
    "ep4 pp1": {"mesh": Mesh(dp_replicate=4, ep=4)},
    "zero3 ep2": {"mesh": Mesh(dp_shard=2, ep=2), "zero": 3, "microbatches": 2},
    "single": {"microbatches": 4},
}


@pytest.mark.parametrize(
    ("before", "after"),
    [("ep2", "ep2"), ("ep2", "single"), ("single", "ep4 pp1"), ("zero3 ep2", "ep2")],
)
def test_checkpoints_hold_all_experts(before: str, after: str, tmp_path: Path) -> None:
    task = replace(sorted_experts(), optimizer=lambda params: torch.optim.AdamW(params, lr=0.01))
    plans = [helpers.make_plan(task, **LIKE[name]) for name in (before, after)]
    first = helpers.run(plans[0], task, tmp_path / "a", warmup=0, steps=5, checkpoint_every=3)
    again = helpers.run(
        plans[1], task, tmp_path / "b", warmup=0, steps=2, resume=tmp_path / "a" / "checkpoints"
    )
    assert again.losses == pytest.approx(first.losses[3:], rel=1e-5)


def test_experts_that_ranks_do_not_divide_are_refused(tmp_path: Path) -> None:
    task = sorted_experts(experts=3)
    plan = helpers.make_plan(task, mesh=Mesh(dp_replicate=2, ep=2))
    with pytest.raises(Exception, match="ep=2 does not divide the 3 experts of 'up_bias'"):
        helpers.run(plan, task, tmp_path)
