from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from autopar.tasks import Task, resolve, small_target


class LossModule(nn.Module):
    """The loss of a model as one module, as the tracer captures it."""

    def __init__(self, task: Task, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.loss = task.loss

    def forward(self, inputs: Any, target: Any) -> torch.Tensor:
        if isinstance(inputs, dict):
            output = self.model(**inputs)
        else:
            output = self.model(*inputs) if isinstance(inputs, tuple) else self.model(inputs)
        return self.loss(output, target)


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def loss_module():
    pytest.importorskip("transformers")
    return LossModule


@pytest.fixture
def small():
    """name -> (task, loss module, batch maker) of the small version."""

    def make(name: str) -> tuple[Task, LossModule]:
        pytest.importorskip("transformers")
        task = resolve(small_target(name))
        torch.manual_seed(task.seed)
        return task, LossModule(task, task.model())

    return make
