"""The generators that ops on a device draw from: seeded, or set back to draw a second time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


def seed_generators(seed: int, device: torch.device) -> None:
    """Seed the CPU's generator and the device's own; draws are those after ``torch.manual_seed``.

    That one also seeds every kind of device that is not in use, and formats a stack trace for
    each of them (torch 2.11-2.13): a quarter of a millisecond at every step.

    Args:
        seed: Not negative.
        device: Whose generator; ops on it may draw from the CPU's too.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)


class RandomState:
    """State of the generators that ops on a device draw from, as it is now.

    Args:
        device: The device; ops on it may draw from the CPU's generator too.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._host = torch.get_rng_state()
        self._own = torch.cuda.get_rng_state(device) if device.type == "cuda" else None

    @contextmanager
    def restored(self) -> Iterator[None]:
        """Within it the same numbers are drawn again; afterwards the generators go on."""
        with torch.random.fork_rng(devices=[self._device] if self._own is not None else []):
            torch.set_rng_state(self._host)
            if self._own is not None:
                torch.cuda.set_rng_state(self._own, self._device)
            yield
