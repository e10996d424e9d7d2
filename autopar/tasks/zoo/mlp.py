"""The multi-layer perceptron, the smallest model worth planning."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import nn

from autopar.tasks.task import Task
from autopar.tasks.zoo import data
from autopar.tasks.zoo.common import class_loss, require_positive, sgd_momentum


def mlp(*, inputs: int = 10, width: int = 10, depth: int = 2, classes: int = 10) -> Task:
    """A perceptron; by default with two hidden layers of 10 units.

    Args:
        inputs: Coordinates of a sample.
        width: Units in a hidden layer.
        depth: Hidden layers.
        classes: Number of classes.
    """
    require_positive(inputs=inputs, width=width, depth=depth, classes=classes)

    def model() -> nn.Module:
        return Perceptron(inputs, width, depth, classes)

    def batch(n: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        return data.clusters(n, inputs, classes, generator)

    return Task(name="mlp", model=model, batch=batch, loss=class_loss, optimizer=sgd_momentum)


class Perceptron(nn.Module):
    """Linear layers with rectifiers between them.

    Args:
        inputs: Coordinates of a sample.
        width: Units in a hidden layer.
        depth: Hidden layers.
        classes: Outputs.
    """

    def __init__(self, inputs: int, width: int, depth: int, classes: int) -> None:
        super().__init__()
        widths = [inputs] + [width] * depth
        self.hidden = nn.ModuleList(nn.Linear(before, after) for before, after in pairwise(widths))
        self.output = nn.Linear(width, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits, ``[n, classes]``.

        Args:
            x: Points, ``float[n, inputs]``.
        """
        for layer in self.hidden:
            x = torch.relu(layer(x))
        logits: torch.Tensor = self.output(x)
        return logits
