"""Synthetic data that a model can learn from, so that a falling loss means something.

Everything random comes from the generator; every function works for one sample.
"""

from __future__ import annotations

import math

import torch


def sequences(
    n: int, length: int, low: int, high: int, generator: torch.Generator
) -> torch.Tensor:
    """Token sequences that count upwards in a random small stride.

    Token ``t`` is ``start + stride * t`` modulo the number of ids in use, at most 64: a model
    first learns which ids occur and then, from two neighbours, how to continue.

    Args:
        n: Samples.
        length: Tokens in a sample.
        low: Smallest id that may occur.
        high: One more than the largest id that may occur.
        generator: Source of randomness.

    Returns:
        Ids, ``int64[n, length]``.
    """
    used = max(1, min(64, high - low))
    start = torch.randint(used, (n, 1), generator=generator)
    stride = torch.randint(1, 4, (n, 1), generator=generator)
    return low + (start + stride * torch.arange(length)) % used


def images(
    n: int, channels: int, size: int, classes: int, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Noisy gratings whose direction and frequency tell their class.

    Args:
        n: Samples.
        channels: Colour channels.
        size: Height and width in pixels.
        classes: Number of classes.
        generator: Source of randomness.

    Returns:
        Images ``float32[n, channels, size, size]`` and labels ``int64[n]``.
    """
    label = torch.randint(classes, (n,), generator=generator)
    angle = math.pi * (label % 8).float() / 8
    frequency = 1.0 + (label // 8 % 8).float()
    axis = torch.linspace(-math.pi, math.pi, size)
    x, y = axis.view(1, 1, size), axis.view(1, size, 1)
    across = torch.cos(angle).view(n, 1, 1) * x + torch.sin(angle).view(n, 1, 1) * y
    grating = torch.cos(frequency.view(n, 1, 1) * across).unsqueeze(1)
    noise = torch.randn(n, channels, size, size, generator=generator)
    return grating + 0.3 * noise, label


def discs(
    n: int, channels: int, size: int, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Noisy images of one bright disc, with the disc as the segmentation mask.

    Args:
        n: Samples.
        channels: Colour channels.
        size: Height and width in pixels.
        generator: Source of randomness.

    Returns:
        Images ``float32[n, channels, size, size]`` and masks ``int64[n, size, size]`` of 0 and 1.
    """
    centre = 0.25 + 0.5 * torch.rand(n, 2, generator=generator)
    radius = 0.1 + 0.2 * torch.rand(n, 1, 1, generator=generator)
    axis = torch.linspace(0.0, 1.0, size)
    dx = axis.view(1, 1, size) - centre[:, 0].view(n, 1, 1)
    dy = axis.view(1, size, 1) - centre[:, 1].view(n, 1, 1)
    mask = (dx**2 + dy**2).sqrt() < radius
    noise = torch.randn(n, channels, size, size, generator=generator)
    return mask.unsqueeze(1).float() + 0.3 * noise, mask.long()


def waves(n: int, length: int, levels: int, generator: torch.Generator) -> torch.Tensor:
    """Chords of two sine tones, companded by the mu-law and quantised.

    Args:
        n: Samples.
        length: Audio samples in a clip.
        levels: Quantisation levels.
        generator: Source of randomness.

    Returns:
        Levels, ``int64[n, length]``.
    """
    period = 8.0 + 56.0 * torch.rand(n, 2, 1, generator=generator)
    phase = 2.0 * math.pi * torch.rand(n, 2, 1, generator=generator)
    tones = torch.sin(2.0 * math.pi * torch.arange(length) / period + phase)
    amplitude = 0.45 * tones.sum(dim=1)
    mu = levels - 1
    companded = amplitude.sign() * torch.log1p(mu * amplitude.abs()) / math.log1p(mu)
    return ((companded + 1.0) / 2.0 * mu).round().long().clamp(0, mu)


def clusters(
    n: int, width: int, classes: int, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Points around one centre for each class; the centres are fixed.

    Args:
        n: Samples.
        width: Coordinates of a point.
        classes: Number of classes.
        generator: Source of randomness.

    Returns:
        Points ``float32[n, width]`` and labels ``int64[n]``.
    """
    label = torch.randint(classes, (n,), generator=generator)
    grid = torch.outer(1.0 + label.float(), 1.0 + torch.arange(width))
    return torch.cos(grid) + 0.3 * torch.randn(n, width, generator=generator), label


def padding(n: int, length: int, generator: torch.Generator) -> torch.Tensor:
    """Masks of samples that fill at least three quarters of their row.

    Args:
        n: Samples.
        length: Tokens in a row.
        generator: Source of randomness.

    Returns:
        1 for a token and 0 for padding, ``int64[n, length]``, as tokenizers give it.
    """
    shortest = max(1, length - length // 4)
    filled = torch.randint(shortest, length + 1, (n, 1), generator=generator)
    return (torch.arange(length) < filled).long()
