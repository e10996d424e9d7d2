"""A factor on the loss that keeps float16 gradients from vanishing, found as training goes.

As ``torch.amp.GradScaler``, but a gradient that is not finite on one rank is one for all: every
rank skips the step, and the factor stays the same everywhere.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.distributed as dist

from autopar.executor.measuring.traffic import Traffic
from autopar.executor.optimizing.gradients import local

_BACKOFF = 0.5
_GROWTH = 2.0
_GROWTH_STEPS = 2000
_FLAG_BYTES = 4


@dataclass(kw_only=True)
class LossScale:
    """The factor and what moves it.

    Attributes:
        value: The factor, a power of two: scaling rounds nothing.
        good_steps: Steps since it last changed.
        overflowed: A gradient of the last :meth:`unscale` was not finite, on some rank.
    """

    value: float = 2.0**16
    good_steps: int = 0
    overflowed: bool = False

    def unscale(
        self, parameters: Iterable[torch.nn.Parameter], device: torch.device, traffic: Traffic
    ) -> None:
        """Divide gradients by the factor (collective).

        All become zero when any on any rank is not finite.

        Args:
            parameters: This rank's.
            device: Where the ranks' flag travels.
            traffic: Counts what is sent.
        """
        live = [local(p.grad) for p in parameters if p.grad is not None]
        flag = torch.zeros(1, device=device)
        if live:
            # gradients are float32 whatever the products were: autocast keeps float32 weights
            torch._amp_foreach_non_finite_check_and_unscale_(
                live, flag, torch.full((1,), 1.0 / self.value, device=device)
            )
        if dist.get_world_size() > 1:
            dist.all_reduce(flag, op=dist.ReduceOp.MAX)
            traffic.all_reduce(_FLAG_BYTES, dist.get_world_size())
        self.overflowed = bool(flag.item())
        if self.overflowed and live:  # nothing that keeps a residual may see them
            torch._foreach_zero_(live)

    def next_step(self) -> bool:
        """Move the factor by what was found; False when the step must be skipped."""
        if self.overflowed:
            self.value *= _BACKOFF
            self.good_steps = 0
            return False
        self.good_steps += 1
        if self.good_steps == _GROWTH_STEPS:
            self.value *= _GROWTH
            self.good_steps = 0
        return True

    def state(self) -> dict[str, float]:
        """For a checkpoint."""
        return {"value": self.value, "good_steps": self.good_steps}

    def restore(self, state: dict[str, float]) -> None:
        """Go on from a checkpoint."""
        self.value = float(state["value"])
        self.good_steps = int(state["good_steps"])
