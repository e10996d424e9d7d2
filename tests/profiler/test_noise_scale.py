"""The gradient noise scale against a task whose noise is known in closed form."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from autopar.api.profiling import profile
from autopar.core.errors import InputError
from autopar.graph import GradientNoise, GraphProfile
from autopar.profiler.noise_scale import measure_noise_scale, noise_point
from autopar.reporting.pages.profile import profile_page
from autopar.tasks import Task, resolve

WIDTH, SIGMA = 6, 0.5


def regression(lr: float = 0.0) -> Task:
    """``y = x w + noise`` with ``w`` = 1, from weights of 0; x is standard normal."""

    class Zero(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(WIDTH))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x @ self.weight

    def batch(n: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        x = torch.randn(n, WIDTH, generator=generator)
        return x, x.sum(1) + SIGMA * torch.randn(n, generator=generator)

    return Task(
        name="regression",
        model=Zero,
        batch=batch,
        loss=nn.functional.mse_loss,
        optimizer=lambda params: torch.optim.SGD(params, lr=lr),
    )


def expected(distance_squared: float) -> tuple[float, float]:
    """``|G|^2`` and ``tr(Sigma)`` at a squared distance from the true weights.

    One sample's gradient is ``2 (x.d - e) x``: its mean is ``2 d``, its mean square
    ``4 ((width + 2) d.d + width s^2)`` as ``E[(x.d)^2 x.x] = (width + 2) d.d`` for normal x.
    """
    gradient = 4 * distance_squared
    return gradient, 4 * ((WIDTH + 2) * distance_squared + WIDTH * SIGMA**2) - gradient


def test_a_linear_regression_has_the_noise_of_the_formula():
    noise = measure_noise_scale(regression(), steps=0, batch=4, repeats=200)
    (point,) = noise.points
    gradient, trace = expected(WIDTH)
    assert point.gradient_squared == pytest.approx(gradient, rel=0.05)
    assert point.noise_trace == pytest.approx(trace, rel=0.05)
    assert point.scale is not None
    assert point.scale.value == pytest.approx(trace / gradient, rel=0.05)
    assert point.scale.low < trace / gradient < point.scale.high
    assert noise.scale == point.scale


def test_noise_grows_while_the_gradient_shrinks():
    noise = measure_noise_scale(regression(lr=0.05), steps=12, batch=8, repeats=40)
    assert [point.step for point in noise.points] == [0, 6, 12]
    scales = [point.scale for point in noise.points]
    values = [scale.value for scale in scales if scale is not None]
    assert len(values) == 3
    assert values == sorted(values)
    assert values[-1] > 1.5 * values[0]


def test_the_formula_undoes_both_batch_sizes():
    gradient, trace = 3.0, 40.0
    pair = (gradient + trace / 4, gradient + trace / 32)
    point = noise_point(0, [pair] * 4, 4, 32)
    assert point.gradient_squared == pytest.approx(gradient)
    assert point.noise_trace == pytest.approx(trace)
    assert point.scale is not None
    assert point.scale.high - point.scale.low < 1e-6


def test_a_gradient_lost_in_noise_has_no_scale():
    point = noise_point(0, [(10.0, 1.0), (10.0, 1.25), (10.0, 1.5)], 4, 32)
    assert point.scale is None
    noise = GradientNoise(small_batch=4, big_batch=32, repeats=3, train_batch=4, points=(point,))
    assert "lost in the noise of 96 samples" in noise.words
    assert GradientNoise.from_dict(noise.to_dict()) == noise


def test_the_same_seed_gives_the_same_noise():
    first, again = (
        measure_noise_scale(resolve("zoo:shapes?size=small"), steps=2, batch=2, repeats=2)
        for _ in range(2)
    )
    assert first == again


def test_samples_of_a_dataset():
    inputs, target = regression().batch(64, torch.Generator().manual_seed(0))
    task = replace(regression(), dataset=list(zip(inputs, target, strict=True)))
    noise = measure_noise_scale(task, steps=0, batch=4, repeats=100)
    assert noise.points[0].gradient_squared == pytest.approx(expected(WIDTH)[0], rel=0.5)


def test_profiles_keep_it(workplace: Path):
    target = "zoo:mlp?inputs=4&width=4"
    with_it = profile(target, measure=False, noise_steps=2)
    assert with_it.gradient_noise is not None
    again = profile(target, measure=False)
    assert again.gradient_noise == with_it.gradient_noise
    assert GraphProfile.from_dict(with_it.to_dict()) == with_it
    assert any(section.id == "noise" for section in profile_page(with_it).sections)
    with pytest.raises(InputError, match="real training"):
        profile(target, device="h100-sxm", noise_steps=2)
