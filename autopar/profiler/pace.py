"""How fast the host is while something else is timed: passes of a small network now and then."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from autopar.core.stats import median

_WARM_UP = 3


class Pace:
    """Seconds of a small network's pass, sampled between the steps or points that are timed.

    The pass is forward, backward and optimizer of a few hundred small operators and some products
    that fill a core. It stands for no model: only the ratio of its times in two measurements means
    something, and only where as many ranks sampled at once. On a steady host that ratio was .81 to
    1.07 (24 plans, ``docs/accuracy.md``), so smaller changes say nothing.

    Attributes:
        samples_s: Seconds of each pass.
    """

    def __init__(self) -> None:
        self.samples_s: list[float] = []
        self._step: Callable[[], None] | None = None

    @property
    def seconds(self) -> float | None:
        """Median pass, ``None`` before the first one."""
        return median(self.samples_s) if self.samples_s else None

    def sample(self) -> None:
        """Time one pass; the first call also makes the network."""
        if self._step is None:
            self._step = network_step()
            for _ in range(_WARM_UP):
                self._step()
        started = time.perf_counter()
        self._step()
        self.samples_s.append(time.perf_counter() - started)


def network_step() -> Callable[[], None]:
    """A training step of the network; the generators of random numbers stay as they are."""
    with torch.random.fork_rng(devices=[]):
        layers: list[torch.nn.Module] = []
        for _ in range(12):
            layers += [torch.nn.Linear(64, 64), torch.nn.GELU(), torch.nn.LayerNorm(64)]
        network = torch.nn.Sequential(*layers)
        value = torch.randn(256, 64)
    optimizer = torch.optim.AdamW(network.parameters())

    def step() -> None:
        with torch.enable_grad():
            for _ in range(2):
                network(value).sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    return step
