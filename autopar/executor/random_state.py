"""The random numbers of a device, drawn a second time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


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
