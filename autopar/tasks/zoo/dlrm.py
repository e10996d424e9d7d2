"""DLRM: the recommendation model of embedding tables and pairwise products."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

import torch
from torch import nn
from torch.nn import functional

from autopar.core.errors import InputError
from autopar.tasks.task import Task
from autopar.tasks.zoo.common import parse_sizes, require_positive

DENSE_FEATURES = 13
CRITEO_ROWS = (
    39884406, 39043, 17289, 7420, 20263, 3, 7120, 1543, 63, 38532951, 2953546, 403346, 10,
    2208, 11938, 155, 4, 976, 14, 39979771, 25641295, 39664984, 585935, 12972, 108, 36,
)  # fmt: skip
"""Values of each categorical feature of Criteo Terabyte, capped at 40 M as in MLPerf DLRM."""


def dlrm(
    *,
    tables: int = 26,
    max_rows: int = 40_000_000,
    dim: int = 128,
    bottom: str = "512-256-128",
    top: str = "1024-1024-512-256-1",
) -> Task:
    """A DLRM; the defaults are the MLPerf model on Criteo Terabyte with 24 G parameters.

    Every feature has one value in a sample, as in Criteo, so tables are plain look-ups; their
    gradients are dense, which keeps every optimizer and check usable.

    Args:
        tables: Categorical features; beyond 26 the sizes of Criteo's repeat.
        max_rows: Rows that a table has at most.
        dim: Width of an embedding.
        bottom: Layers of the dense features' perceptron, joined by '-'; ends with ``dim``.
        top: Layers of the final perceptron, joined by '-'; ends with 1.
    """
    require_positive(tables=tables, max_rows=max_rows, dim=dim)
    bottom_sizes, top_sizes = parse_sizes("bottom", bottom), parse_sizes("top", top)
    for name, text, sizes, last in (
        ("bottom", bottom, bottom_sizes, dim),
        ("top", top, top_sizes, 1),
    ):
        if sizes[-1] != last:
            raise InputError(
                f"{name}={text}: must end with {last}", hint=f"for example {name}={text}-{last}"
            )
    rows = [min(max_rows, CRITEO_ROWS[i % len(CRITEO_ROWS)]) for i in range(tables)]

    def model() -> nn.Module:
        return Dlrm(rows, dim, bottom_sizes, top_sizes)

    def batch(n: int, generator: torch.Generator) -> tuple[object, torch.Tensor]:
        return _clicks(n, rows, generator)

    return Task(name="dlrm", model=model, batch=batch, loss=click_loss, optimizer=sgd)


def sgd(params: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """Plain SGD, as in MLPerf; a moment for every row would double the tables."""
    return torch.optim.SGD(params, lr=0.1)


def click_loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Mean binary cross entropy over the samples, in nats.

    Args:
        output: Logits, ``[n]``.
        target: 1 for a click and 0 for none, ``float[n]``.
    """
    return functional.binary_cross_entropy_with_logits(output, target)


class Dlrm(nn.Module):
    """Embeds categories and dense features, multiplies all pairs and classifies.

    Args:
        rows: Rows of each table.
        dim: Width of an embedding.
        bottom: Layers for the dense features.
        top: Layers for the pairs.
    """

    def __init__(self, rows: list[int], dim: int, bottom: list[int], top: list[int]) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(count, dim) for count in rows)
        self.bottom = _perceptron([DENSE_FEATURES, *bottom], last_relu=True)
        features = len(rows) + 1
        self.top = _perceptron([dim + features * (features - 1) // 2, *top], last_relu=False)

    def forward(self, dense: torch.Tensor, categories: torch.Tensor) -> torch.Tensor:
        """Logits of a click, ``[n]``.

        Args:
            dense: ``float[n, 13]``.
            categories: One row of each table, ``int64[n, tables]``.
        """
        x = self.bottom(dense)
        vectors = [table(categories[:, i]) for i, table in enumerate(self.tables)]
        features = torch.stack([x, *vectors], dim=1)
        products = torch.bmm(features, features.transpose(1, 2))
        count = features.shape[1]
        row, column = torch.tril_indices(count, count, offset=-1, device=x.device).unbind(0)
        pairs = products.flatten(1).index_select(1, row * count + column)
        logits: torch.Tensor = self.top(torch.cat((x, pairs), dim=1))
        return logits.squeeze(1)


def _perceptron(sizes: list[int], *, last_relu: bool) -> nn.Sequential:
    layers: list[nn.Module] = []
    for before, after in pairwise(sizes):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*(layers if last_relu else layers[:-1]))


def _clicks(
    n: int, rows: list[int], generator: torch.Generator
) -> tuple[tuple[torch.Tensor, torch.Tensor], torch.Tensor]:
    dense = torch.randn(n, DENSE_FEATURES, generator=generator)
    uniform = torch.rand(n, len(rows), generator=generator, dtype=torch.float64)
    # Few rows are popular and most are rare, as in real click logs.
    categories = (uniform**4 * torch.tensor(rows)).long()
    taste = (categories % 2 * 2 - 1).float().sum(dim=1)
    clicked = dense.sum(dim=1) + taste > 0
    return (dense, categories), clicked.float()
