"""Drawn shapes to tell apart: a task that is learned in seconds, but not at once."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import nn
from torch.nn import functional

from autopar.tasks.task import Task
from autopar.tasks.zoo.common import class_loss, require_at_least, require_positive

CLASSES = 10
"""Disc, ring, half disc, crescent, square, frame, triangle, plus, bar, star."""
NOISE = 0.1
"""Standard deviation of the noise on every pixel, beside a shape of brightness 0.5 to 1."""
TARGET_LOSS = 1.2
"""Nats; guessing costs ln 10 = 2.3. The small version needs about 350 steps of 32 samples."""


def shapes(*, channels: int = 64, depth: int = 6, image: int = 32) -> Task:
    """A residual convolutional network on ten drawn shapes, turned, moved, scaled and noisy.

    No sample comes twice, so the training loss is the loss on unseen images.

    Args:
        channels: Width of every convolution.
        depth: Residual blocks.
        image: Height and width in pixels.
    """
    require_positive(channels=channels, depth=depth)
    require_at_least(8, image=image)

    def model() -> nn.Module:
        return ShapeNet(channels, depth)

    def batch(n: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        return draw(n, image, generator)

    return Task(
        name="shapes",
        model=model,
        batch=batch,
        loss=class_loss,
        optimizer=optimizer,
        target_loss=TARGET_LOSS,
    )


def optimizer(params: Iterable[torch.nn.Parameter]) -> torch.optim.Optimizer:
    """Adam with a step that suits the small network."""
    return torch.optim.Adam(params, lr=3e-3)


class ShapeNet(nn.Module):
    """A convolution with stride 2, residual blocks, a mean over the image, a linear layer.

    Args:
        channels: Width of every convolution.
        depth: Residual blocks.
    """

    def __init__(self, channels: int, depth: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, channels, 5, stride=2, padding=2)
        self.blocks = nn.ModuleList(Residual(channels) for _ in range(depth))
        self.output = nn.Linear(channels, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits, ``[n, 10]``.

        Args:
            x: Images, ``float[n, 1, height, width]``.
        """
        x = torch.relu(self.stem(x))
        for block in self.blocks:
            x = block(x)
        logits: torch.Tensor = self.output(functional.adaptive_avg_pool2d(x, 1).flatten(1))
        return logits


class Residual(nn.Module):
    """Two 3x3 convolutions beside the identity.

    Args:
        channels: Width.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Features, ``[n, channels, height, width]``."""
        return torch.relu(x + self.second(torch.relu(self.first(x))))


def draw(n: int, size: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Images of one shape each: any angle, off the centre, of random size and brightness.

    Args:
        n: Samples.
        size: Height and width in pixels.
        generator: Source of randomness.

    Returns:
        Images ``float32[n, 1, size, size]`` and labels ``int64[n]``.
    """
    label = torch.randint(CLASSES, (n,), generator=generator)
    angle, scale, bright, dx, dy = torch.rand(5, n, 1, 1, generator=generator)
    angle = 2 * math.pi * angle
    axis = torch.linspace(-1.0, 1.0, size)
    x = axis.view(1, 1, size) - 0.3 * (2 * dx - 1)
    y = axis.view(1, size, 1) - 0.3 * (2 * dy - 1)
    scale = 0.45 + 0.2 * scale
    u = (torch.cos(angle) * x + torch.sin(angle) * y) / scale
    v = (torch.cos(angle) * y - torch.sin(angle) * x) / scale
    depths = _inside(u, v)[label, torch.arange(n)]
    softness = 2.0 / (size * scale)  # a pixel, in units of the shape
    shape = (depths / softness + 0.5).clamp(0.0, 1.0)
    noise = torch.randn(n, 1, size, size, generator=generator)
    return (0.5 + 0.5 * bright).unsqueeze(1) * shape.unsqueeze(1) + NOISE * noise, label


def _inside(u: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """How deep a point is inside each shape of radius 1, negative outside: ``[10, ...]``."""
    radius = torch.sqrt(u**2 + v**2)
    disc = 1.0 - radius
    square = 0.85 - torch.maximum(u.abs(), v.abs())
    sides = [math.cos(a) * u + math.sin(a) * v for a in (0.0, 2 * math.pi / 3, 4 * math.pi / 3)]
    triangle = 0.5 - torch.stack(sides).amax(dim=0)
    across, along = 0.3 - u.abs(), 0.3 - v.abs()
    bar = torch.minimum(along, 1.0 - u.abs())
    plus = torch.maximum(bar, torch.minimum(across, 1.0 - v.abs()))
    star = 0.55 + 0.35 * torch.cos(5 * torch.atan2(v, u)) - radius
    hole = torch.sqrt((u - 0.5) ** 2 + v**2) - 0.75
    return torch.stack(
        [
            disc,
            torch.minimum(disc, radius - 0.6),
            torch.minimum(disc, u + 0.1),
            torch.minimum(disc, hole),
            square,
            torch.minimum(square, 0.35 - square),
            triangle,
            plus,
            bar,
            star,
        ]
    )
