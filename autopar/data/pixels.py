"""From bytes to what a model takes."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from autopar.core.errors import InputError


class Scaling:
    """``(pixel / 255 - mean) / std`` per channel.

    Args:
        channels: Channels of an image.
        mean: Per channel; zeros if empty.
        std: Per channel; ones if empty.

    Raises:
        InputError: Another number of values, or a standard deviation that is not positive.
    """

    def __init__(self, channels: int, mean: Sequence[float], std: Sequence[float]) -> None:
        for name, values in (("mean", mean), ("std", std)):
            if values and len(values) != channels:
                raise InputError(
                    f"{name} has {len(values)} values for {channels} channels",
                    hint="give one per channel",
                )
        if any(not value > 0 for value in std):
            raise InputError(f"std={list(std)} must be positive", hint="use 1 to leave it out")
        self._mean = torch.tensor(mean or [0.0] * channels)[:, None, None]
        self._std = torch.tensor(std or [1.0] * channels)[:, None, None]

    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        """Float32 image of a uint8 one, both ``[channels, height, width]``."""
        return (pixels.float() / 255 - self._mean) / self._std
