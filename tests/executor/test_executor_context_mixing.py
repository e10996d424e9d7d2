"""Ops that mix positions, attention written by hand and routed experts on divided sequences."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import executor_helpers as helpers
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from autopar.core.errors import InputError
from autopar.executor.division.collectives import Collectives
from autopar.executor.division.context import divide_sequences
from autopar.executor.division.editor import whole
from autopar.executor.measuring.traffic import Traffic
from autopar.executor.mesh_groups import Group
from autopar.plans import Mesh
from autopar.tasks import Task
from autopar.tasks.resolve import resolve
from autopar.tasks.zoo.small import small_target
from autopar.trace import build_model, trace

LENGTH, WIDTH, HEADS, TOKENS = 16, 8, 2, 11


def verified(task: Task, out: Path, mesh: Mesh, **changes: Any) -> list[str]:
    """Run a plan and compare; returns warnings of context parallelism."""
    plan = helpers.make_plan(task, mesh=mesh, clip_norm=0.05, **changes)
    record = helpers.run(plan, task, out, verify=True, steps=1, warmup=0)
    assert record.verify is not None
    assert record.verify.passed, record.verify
    return [text for text in record.warnings if text.startswith("cp:")]


def _twice(scores: torch.Tensor) -> torch.Tensor:
    return scores @ scores


MIXERS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "slice": lambda x: x[:, 1:].mean(1, keepdim=True),
    "roll": lambda x: x.roll(1, 1),
    "conv1d": lambda x: F.conv1d(x.transpose(1, 2), torch.ones(8, 8, 1)).transpose(1, 2),
    "amax": lambda x: x.amax(1, keepdim=True),
    "pad": lambda x: F.pad(x, (0, 0, 1, 0))[:, :-1] * x,
    "flip": lambda x: x.unflatten(-1, (2, 4)).transpose(1, 2).flip(2).transpose(1, 2).flatten(2),
    "matmul": lambda x: _twice((x @ x.transpose(1, 2)).softmax(-1)) @ x,
    "mul": lambda x: (x[:, :, None] * x[:, None]).mean(2),
}
ALIKE: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "cumsum": lambda x: x.cumsum(1) + x.flatten(1).cumsum(1).view_as(x),
    "scores": lambda x: (x @ x.transpose(1, 2)).softmax(-1) @ x,
    "linear attention": lambda x: x.softmax(-1) @ (x.transpose(1, 2) @ x),
}
"""Those that need no more than the planner prices."""


class Mixed(nn.Module):
    def __init__(self, mix: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.layer = nn.Linear(WIDTH, WIDTH)
        self.mix = mix

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.layer(x)
        x = F.scaled_dot_product_attention(x, x, x)
        return x + self.mix(x)


def mixed(mix: Callable[[torch.Tensor], torch.Tensor]) -> Task:
    return Task(
        name="mixed",
        model=lambda: Mixed(mix),
        batch=lambda n, g: (
            torch.randn(n, LENGTH, WIDTH, generator=g),
            torch.randn(n, LENGTH, WIDTH, generator=g),
        ),
        loss=F.mse_loss,
        optimizer=lambda params: torch.optim.SGD(params, lr=0.1),
    )


@pytest.mark.parametrize("name", MIXERS)
def test_ops_that_mix_positions_are_computed_whole(name: str, tmp_path: Path) -> None:
    found = verified(mixed(MIXERS[name]), tmp_path, Mesh(cp=2))
    assert len(found) == 1
    assert f"{name} (1x)" in found[0] or f"{name} (2x)" in found[0]


@pytest.mark.parametrize("name", ALIKE)
def test_sums_and_products_over_positions_are_divided(name: str, tmp_path: Path) -> None:
    assert not verified(mixed(ALIKE[name]), tmp_path, Mesh(cp=4))


def _shifted(x: torch.Tensor) -> torch.Tensor:
    y = x.clone()
    y[:, 1:].copy_(x[:, :-1])
    return y


def test_writing_into_a_slice_of_the_sequence_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    task = mixed(_shifted)
    traced = trace(task, 2, model=build_model(task))
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 0)
    calls = Collectives(Group((0, 1), None), Traffic())
    with pytest.raises(InputError, match=r"copy_.* a view of which mixes positions.*cp=2"):
        divide_sequences(whole(traced), calls, [])


class Written(nn.Module):
    """A language model as people write it: attention out of products, masks and a softmax."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way
        self.tokens = nn.Embedding(TOKENS, WIDTH)
        self.places = nn.Embedding(LENGTH, WIDTH)
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.out = nn.Linear(WIDTH, WIDTH)
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, TOKENS, bias=False)
        self.register_buffer("mask", torch.ones(LENGTH, LENGTH).tril()[None, None])

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        n, length = ids.shape
        x = self.tokens(ids) + self.places(torch.arange(length, device=ids.device))
        q, k, v = self.qkv(self.norm(x)).chunk(3, dim=-1)
        y = getattr(self, self.way)(q, k, v, n, length, ids)
        return self.head(x + self.out(y))

    def causal(self, q: Any, k: Any, v: Any, n: int, t: int, ids: Any) -> torch.Tensor:
        q, k, v = (x.view(n, t, HEADS, -1).transpose(1, 2) for x in (q, k, v))
        scores = (q @ k.transpose(-2, -1)) * (1.0 / math.sqrt(k.size(-1)))
        scores = scores.masked_fill(self.mask[:, :, :t, :t] == 0, float("-inf"))
        y = F.dropout(F.softmax(scores, dim=-1), 0.1, self.training) @ v
        return y.transpose(1, 2).contiguous().view(n, t, WIDTH)

    def padded(self, q: Any, k: Any, v: Any, n: int, t: int, ids: Any) -> torch.Tensor:
        """As BERT: a mask of the tokens that are no padding."""
        q, k, v = (x.view(n, t, HEADS, -1).permute(0, 2, 1, 3) for x in (q, k, v))
        scores = torch.matmul(q, k.transpose(-1, -2)) / math.sqrt(q.shape[-1])
        scores = scores + (1.0 - (ids != 0).float())[:, None, None, :] * -1e4
        y = torch.matmul(nn.Softmax(dim=-1)(scores), v).permute(0, 2, 1, 3).contiguous()
        return y.view(*y.shape[:2], WIDTH)

    def batched(self, q: Any, k: Any, v: Any, n: int, t: int, ids: Any) -> torch.Tensor:
        """Samples and heads in one dimension, as fairseq and old torch."""
        q, k, v = (
            x.view(n, t, HEADS, -1).transpose(1, 2).reshape(n * HEADS, t, -1) for x in (q, k, v)
        )
        scores = torch.baddbmm(self.mask[0].log().clamp(min=-1e4), q, k.transpose(1, 2))
        y = torch.bmm(scores.softmax(-1), v)
        return y.view(n, HEADS, t, -1).transpose(1, 2).reshape(n, t, WIDTH)

    def einsum(self, q: Any, k: Any, v: Any, n: int, t: int, ids: Any) -> torch.Tensor:
        q, k, v = (x.view(n, t, HEADS, -1) for x in (q, k, v))
        scores = torch.einsum("bihd,bjhd->bhij", q, k)
        scores = torch.where(self.mask[0, 0, :t, :t] > 0, scores, -1e4)
        return torch.einsum("bhij,bjhd->bihd", scores.softmax(-1), v).flatten(2)


def written(way: str) -> Task:
    return Task(
        name="written",
        model=lambda: Written(way),
        batch=lambda n, g: (
            torch.randint(0, TOKENS, (n, LENGTH), generator=g),
            torch.randint(0, TOKENS, (n, LENGTH), generator=g),
        ),
        loss=lambda out, target: F.cross_entropy(out.flatten(0, 1), target.flatten()),
        optimizer=lambda params: torch.optim.SGD(params, lr=0.1),
    )


@pytest.mark.parametrize("way", ["causal", "padded", "batched", "einsum"])
def test_attention_written_by_hand(way: str, tmp_path: Path) -> None:
    assert not verified(written(way), tmp_path, Mesh(cp=4), microbatches=2)


COLUMNS: dict[str, tuple[str, Mesh, bool]] = {
    "causal": ("causal", Mesh(cp=2, tp=2), False),
    "causal sp": ("causal", Mesh(cp=2, tp=2), True),
    "causal sp alone": ("causal", Mesh(tp=2), True),
    "padded": ("padded", Mesh(cp=2, tp=2), False),
    "padded sp": ("padded", Mesh(cp=2, tp=2), True),
    "batched": ("batched", Mesh(cp=2, tp=2), False),
    "einsum": ("einsum", Mesh(cp=2, tp=2), False),
}


@pytest.mark.parametrize("case", COLUMNS)
def test_attention_written_by_hand_with_columns(case: str, tmp_path: Path) -> None:
    way, mesh, sequence_parallel = COLUMNS[case]
    assert not verified(written(way), tmp_path, mesh, sequence_parallel=sequence_parallel)


EXPERTS: dict[str, dict[str, Any]] = {
    "cp2": {"mesh": Mesh(cp=2), "microbatches": 2},
    "cp2 tp2": {"mesh": Mesh(cp=2, tp=2)},
    "cp2 ep2": {"mesh": Mesh(cp=2, ep=2)},
    "dp2 cp2 ep4": {"mesh": Mesh(dp_replicate=2, cp=2, ep=4)},
}


@pytest.mark.parametrize("shape", EXPERTS)
def test_routed_experts(shape: str, tmp_path: Path) -> None:
    """Places of a sample's tokens count over the whole sequence."""
    pytest.importorskip("transformers")
    task = resolve(small_target("moe").replace("layers=2", "layers=1"))
    verified(task, tmp_path, **EXPERTS[shape])
