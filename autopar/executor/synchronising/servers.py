"""Replicas that only meet at their parameter servers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import final

import torch

from autopar.executor.synchronising.base import Synchroniser


@final
class BesideServers(Synchroniser):
    """Gradients stay a rank's own; ``Lowering.update`` pushes them and records its own span."""

    def reduce(
        self, parameters: Mapping[str, torch.nn.Parameter], *, ragged: bool = False
    ) -> None:
        """Nothing: the servers add gradients."""

    def update(self, step: Callable[[], None]) -> None:
        """The servers' step."""
        step()
