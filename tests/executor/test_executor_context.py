"""Sequences shared out over ranks: the same loss and gradients as one process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import executor_helpers as helpers
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from autopar.executor.division.along import Along
from autopar.plans import Mesh
from autopar.tasks import Task
from autopar.tasks.resolve import resolve
from autopar.tasks.zoo.small import small_target

MESHES: dict[str, dict[str, Any]] = {
    "cp2": {"mesh": Mesh(cp=2), "microbatches": 2},
    "cp4": {"mesh": Mesh(cp=4)},
    "dp2 cp2": {"mesh": Mesh(dp_replicate=2, cp=2), "microbatches": 2, "clip_norm": 0.05},
    "cp2 pp2": {"mesh": Mesh(cp=2, pp=2), "microbatches": 2},
}


COMBINED: dict[str, dict[str, Any]] = {
    "zero3 cp2": {"mesh": Mesh(dp_shard=2, cp=2), "zero": 3, "microbatches": 2, "clip_norm": 0.05},
    "zero1 cp2": {"mesh": Mesh(dp_shard=2, cp=2), "zero": 1},
    "cp2 zero bubble": {"mesh": Mesh(cp=2, pp=2), "schedule": "zero_bubble", "microbatches": 2},
    "cp2 interleaved": {"mesh": Mesh(cp=2, pp=2), "schedule": "interleaved", "stages": 4},
}


@pytest.mark.parametrize("shape", COMBINED)
def test_with_sharding_and_other_schedules(shape: str, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    task = resolve(small_target("gpt").replace("layers=4", "layers=2"))
    plan = helpers.make_plan(task, **COMBINED[shape])
    record = helpers.run(plan, task, tmp_path, verify=True, steps=1, warmup=1)
    assert record.verify is not None
    assert record.verify.passed, record.verify


@pytest.mark.parametrize("shape", MESHES)
@pytest.mark.parametrize("name", ["gpt", "llama", "bert", "transformer"])
def test_zoo_model_equals_one_process(name: str, shape: str, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    target = small_target(name).replace("layers=4", "layers=2").replace("layers=2", "layers=1", 1)
    task = resolve(target)
    plan = helpers.make_plan(task, **MESHES[shape])
    record = helpers.run(plan, task, tmp_path, verify=True, steps=1, warmup=1)
    assert record.verify is not None
    assert record.verify.passed, record.verify


class Reader(nn.Module):
    """What attention models do outside of attention: features, pools, masks, joined parts."""

    def __init__(self, length: int = 16, width: int = 8) -> None:
        super().__init__()
        self.inputs = nn.Linear(6, width)
        self.places = nn.Parameter(torch.randn(1, length, width))
        self.attention = nn.MultiheadAttention(width, 2, batch_first=True)
        self.layer = nn.TransformerEncoderLayer(width, 2, 16, dropout=0.0, batch_first=False)
        self.norm = nn.RMSNorm(width)
        self.head = nn.Linear(3 * width, 5)
        self.tags = nn.Linear(width, 7)
        self.register_buffer("mask", torch.randn(length, length))

    def forward(self, x: torch.Tensor, keep: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = torch.stack([self.inputs(x), self.places[:, : x.shape[1]].expand(len(x), -1, -1)], 2)
        x = x.flatten(2).unflatten(-1, (2, -1)).sum(2)
        x = x + self.attention(x, x, x, need_weights=False, attn_mask=self.mask)[0]
        x = self.layer(x.transpose(0, 1)).transpose(0, 1) * keep[..., None]
        mean = x.sum(1) / keep.sum(1, keepdim=True)
        pooled = torch.cat([x[:, 5], torch.tanh(mean), self.norm(x)[:, -1].relu()], -1)
        return self.head(pooled), self.tags(x)


def reader(ignored: float = 0.4, weighted: bool = False, reduction: str = "mean") -> Task:
    def batch(n: int, g: torch.Generator) -> tuple[Any, Any]:
        x = torch.randn(n, 16, 6, generator=g)
        keep = (torch.rand(n, 16, generator=g) > 0.3).float()
        keep[:, 0] = 1.0
        tags = torch.randint(0, 7, (n, 16), generator=g)
        tags[torch.rand(n, 16, generator=g) < ignored] = 3
        tags[:, :8] = 3 if ignored else tags[:, :8]
        return (x, keep), (torch.randint(0, 5, (n,), generator=g), tags)

    def loss(out: tuple[torch.Tensor, torch.Tensor], target: Any) -> torch.Tensor:
        weight = torch.arange(1.0, 8.0, device=out[1].device) if weighted else None
        tags = F.cross_entropy(
            out[1].transpose(1, 2),
            target[1],
            weight=weight,
            ignore_index=3 if ignored else -100,
            reduction=reduction,
            label_smoothing=0.1,
        )
        penalty = out[1].square().mean() + F.mse_loss(out[1], torch.ones_like(out[1])).sqrt()
        return F.cross_entropy(out[0], target[0]) + tags + 0.1 * penalty

    return Task(
        name="reader",
        model=Reader,
        batch=batch,
        loss=loss,
        optimizer=lambda params: torch.optim.SGD(params, lr=0.1),
    )


LOSSES: dict[str, dict[str, Any]] = {
    "padded": {},
    "weighted": {"weighted": True},
    "all counted": {"ignored": 0.0},
    "sum": {"reduction": "sum"},
}


@pytest.mark.parametrize("loss", LOSSES)
def test_losses_and_pools(loss: str, tmp_path: Path) -> None:
    """Tokens count unevenly over the ranks; three pools; a mask of learned scores."""
    task = reader(**LOSSES[loss])
    plan = helpers.make_plan(task, mesh=Mesh(cp=4), microbatches=2)
    record = helpers.run(plan, task, tmp_path, verify=True, steps=1, warmup=1)
    assert record.verify is not None
    assert record.verify.passed, record.verify


def test_recompute_and_dropout(tmp_path: Path) -> None:
    """Ranks draw masks of their own; recomputing draws them again."""
    pytest.importorskip("transformers")
    task = resolve(small_target("gpt").replace("layers=4", "layers=2") + "&dropout=0.2")
    traced = helpers.traced_of(task)
    middle = helpers.even_cuts(traced, 3)
    plain = helpers.make_plan(task, traced=traced, mesh=Mesh(cp=2))
    again = helpers.make_plan(task, traced=traced, mesh=Mesh(cp=2), recompute={0: (middle,)})
    first = helpers.run(plain, task, tmp_path / "a", steps=3, verify=True)
    second = helpers.run(again, task, tmp_path / "b", steps=3, verify=True)
    for record in (first, second):
        assert record.verify is not None
        assert record.verify.passed, record.verify
    assert second.losses == pytest.approx(first.losses, rel=1e-5)
    assert second.breakdown.recompute_s > 0


def test_views_move_the_sequence() -> None:
    along = Along(dim=1, length=6)
    flat = along.through_view((2, 6, 4, 3), (12, 12))
    assert flat == Along(dim=0, length=6, outer=2)
    assert flat.part((12, 12), 2) == (6, 12)
    assert flat.through_view((12, 12), (2, 6, 1, 12)) == along
    assert along.through_view((2, 6, 4, 3), (2, 24, 3)) == Along(dim=1, length=6, inner=4)
    assert along.through_view((2, 6, 4), (2, 3, 8)) is None
    assert along.through_view((2, 6, 4), (3, 4, 4)) is None
