"""DiLoCo: local training under an outer optimizer (Douillard et al. 2023)."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, final

import torch

from autopar.executor.synchronising.base import Tensors
from autopar.executor.synchronising.periodic import Periodic, under

if TYPE_CHECKING:
    from autopar.executor.lowering import Lowering

LEARNING_RATE = 0.7
MOMENTUM = 0.9


@final
class DiLoCo(Periodic):
    """The mean change of ``period`` local steps is a gradient for SGD with Nesterov momentum.

    Outer learning rate 0.7 and momentum 0.9, as in the paper: with the change ``c`` from the
    anchor to the mean weights, ``m = 0.9 m + c`` and ``weights = anchor + 0.7 (c + 0.9 m)``.
    Inner optimizer state stays local.
    """

    gain: ClassVar[float] = LEARNING_RATE * (1.0 + MOMENTUM)

    @property
    def anchored(self) -> bool:
        """Always: the outer step starts from the last outer weights."""
        return True

    def attach(self, lowering: Lowering) -> None:
        """No momentum at the start."""
        super().attach(lowering)
        self._momentum = {n: torch.zeros_like(p) for n, p in self.anchors.items()}

    def moved(self, name: str, anchor: torch.Tensor, change: torch.Tensor) -> torch.Tensor:
        """One outer step."""
        momentum = self._momentum[name].mul_(MOMENTUM).add_(change)
        return anchor + LEARNING_RATE * (change + MOMENTUM * momentum)

    def state(self) -> dict[str, torch.Tensor]:
        """With the outer momentum."""
        return {**super().state(), **{f"momentum.{n}": m for n, m in self._momentum.items()}}

    @torch.no_grad()
    def load_state(self, state: Tensors) -> None:
        """Inverse of :meth:`state`."""
        super().load_state(state)
        for name, value in under("momentum.", state).items():
            self._momentum[name].copy_(value)
