"""Small models that hold every construct a cut must survive."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from autopar.tasks import Task


class Mlp(nn.Module):
    def __init__(self, width: int, depth: int, dropout: float) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.drop = nn.Dropout(dropout)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = self.drop(torch.tanh(layer(x)))
        return x


def mlp(width: int = 8, depth: int = 4, dropout: float = 0.0, lr: float = 0.1) -> Task:
    return Task(
        name="mlp",
        model=lambda: Mlp(width, depth, dropout),
        batch=lambda n, g: (
            torch.randn(n, width, generator=g),
            torch.randn(n, width, generator=g),
        ),
        loss=F.mse_loss,
        optimizer=lambda params: torch.optim.SGD(params, lr=lr, momentum=0.9),
    )
