"""What each op of a graph does on one tensor parallel rank, without running it."""

from __future__ import annotations

from collections.abc import Callable

import executor_helpers as helpers
import executor_tensor_models as models
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from autopar.executor.division.assignment import Assignment, assign
from autopar.executor.division.parts import Part
from autopar.profiler import count_task
from autopar.strategies import Strategies
from autopar.tasks import Task


def assigned(task: Task, count: int = 2, length: int = 0) -> Assignment:
    traced = helpers.traced_of(task)
    split = Strategies(count_task(traced)).tensor
    return assign(traced, split, count, sequence_length=length)


def of_function(module: Callable[[], nn.Module], shape: tuple[int, ...]) -> Task:
    return Task(
        name="function",
        model=module,
        batch=lambda n, g: (torch.randn(n, *shape, generator=g), torch.zeros(())),
        loss=lambda out, target: out.square().mean() + target,
        optimizer=lambda params: torch.optim.SGD(params, lr=0.1),
    )


@pytest.mark.parametrize("apart", models.ATTENTIONS)
def test_the_planner_and_the_graph_agree(apart: str) -> None:
    found = assigned(models.tokens(apart))
    assert not found.reasons
    assert len(found.columns) == 3  # query-key-value, gate and value, head


@pytest.mark.parametrize(
    ("apart", "sections"),
    [("five dims", (16, 16, 16)), ("heads first", (48,)), ("grouped", (16, 8, 8))],
)
def test_sections_of_a_fused_product(apart: str, sections: tuple[int, ...]) -> None:
    found = assigned(models.tokens(apart))
    first = next(s for s in found.steps.values() if s.kind == "column")
    assert isinstance(first.out, Part)
    assert first.out.sections == sections


def test_one_key_head_is_computed_whole() -> None:
    found = assigned(models.tokens("one key head"))
    assert not found.reasons  # the planner leaves it whole too
    assert len(found.columns) == 2


class Mixed(nn.Module):
    """Between its products stands an op that needs all columns, which the planner cannot see."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 8)
        self.second = nn.Linear(8, 8)
        self.third = nn.Linear(8, 12)
        self.fourth = nn.Linear(12, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        turned = self.first(x).transpose(1, 2)  # tokens and columns have one size
        x = self.second(F.relu(turned).softmax(-1).transpose(1, 2))
        return self.fourth(F.relu(self.third(x)))


def test_sequence_parts_between_regions() -> None:
    found = assigned(models.tokens("chunk"), length=models.LENGTH)
    parts = [p for p in found.layouts.values() if isinstance(p, Part) and p.region == "sequence"]
    assert parts
    assert {p.sections for p in parts} == {(models.LENGTH,)}
    assert {s.kind for s in found.steps.values()} >= {"row", "column", "embedding", "loss"}
