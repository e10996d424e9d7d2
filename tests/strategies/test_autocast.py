"""What autocast moves, counted by hand on a transformer layer and on convolutions."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from autopar.strategies import Split, Strategies
from autopar.strategies.autocast import Autocast
from autopar.strategies.matmul import Products
from autopar.tasks import Task

WIDTH, LENGTH = 32, 8
NAMES = ("layer_norm", "linear", "gelu", "add", "mse_loss")


class Layer(nn.Module):
    """``x + down(gelu(up(norm(x))))``."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.up = nn.Linear(WIDTH, 4 * WIDTH)
        self.down = nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(nn.functional.gelu(self.up(self.norm(x))))


def stack() -> nn.Module:
    return nn.Sequential(nn.LayerNorm(WIDTH), Layer(), Layer())


def task_of(name: str, model: Callable[[], nn.Module], shape: tuple[int, ...]) -> Task:
    def batch(n: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        x = torch.randn(n, *shape, generator=generator)
        return x, x

    return Task(
        name=name,
        model=model,
        batch=batch,
        loss=nn.functional.mse_loss,
        optimizer=lambda p: torch.optim.SGD(p, lr=0.1),
    )


def short(target: str) -> str:
    return target.split(".")[1]


@pytest.fixture(scope="module")
def layers(profiles):
    return profiles(task_of("layers", stack, (LENGTH, WIDTH)))


def test_residual_stream_and_norms_stay_wide_and_products_are_narrow(layers):
    wide = Autocast(Products(layers)).wide
    found = {
        name: {wide[op.index] for op in layers.ops if short(op.target) == name} for name in NAMES
    }
    assert found == {
        "layer_norm": {True},
        "linear": {False},
        "gelu": {False},
        "add": {True},
        "mse_loss": {True},
    }


def test_bytes_of_a_layer_are_those_counted_by_hand(layers):
    """Elements of the width: norm 4 + 4 and its cast 4 + 2, gelu 4 x (2 + 2), sum 4 + 2 + 4."""
    autocast = Autocast(Products(layers))
    second = [op for op in layers.ops if op.module.startswith("1")]
    moved = [autocast.moved(op) for op in second]
    elements = LENGTH * WIDTH
    forward = sum(each.forward_bytes.per_sample for each in moved)
    assert forward == pytest.approx(elements * (8 + 6 + 16 + 10), rel=0.02)
    assert sum(each.casts for each in moved) == 1


def test_weights_of_products_are_cast_by_the_ranks_that_hold_them(layers):
    strategies = Strategies(layers)
    whole = sum(work.cast_elements for work in strategies.works(Split()))
    assert whole == 2 * (2 * 4 * WIDTH * WIDTH + 5 * WIDTH)
    halves = sum(work.cast_elements for work in strategies.works(Split(tp=2)))
    assert whole / 2 <= halves < 0.6 * whole


def test_sequence_parallel_ranks_cast_their_positions(layers):
    strategies = Strategies(layers)

    def moved(split: Split) -> float:
        return sum(w.autocast_forward_bytes.per_sample for w in strategies.works(split))

    assert moved(Split(tp=2, sequence_parallel=True)) == pytest.approx(
        moved(Split()) / 2, rel=0.05
    )
    assert moved(Split(tp=2)) > 0.6 * moved(Split())


def test_batch_norm_does_not_widen_a_convolution_net(profiles):
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 3, 3, padding=1)
    )
    profile = profiles(task_of("convolutions", lambda: net, (3, 16, 16)))
    wide = Autocast(Products(profile)).wide
    relu = next(op for op in profile.ops if short(op.target) == "relu")
    assert not wide[relu.index]
