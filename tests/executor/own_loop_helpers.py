"""A model, data and the plain loop that sessions are compared with."""

from __future__ import annotations

from typing import Any

import executor_models as models
import torch

from autopar.plans import Mesh

STEPS = 3
PLANS: dict[str, dict[str, Any]] = {
    "dp2": {"dp": 2, "microbatches": 2},
    "pp2": {"pp": 2, "microbatches": 4},
    "interleaved": {"pp": 2, "stages": 4, "schedule": "interleaved", "microbatches": 4},
    "tp2": {"mesh": Mesh(tp=2), "microbatches": 4},
    "zero1": {"mesh": Mesh(dp_shard=2), "zero": 1, "microbatches": 2},
    "zero3": {"mesh": Mesh(dp_shard=2), "zero": 3, "microbatches": 2},
    "zero2 pp2": {"mesh": Mesh(dp_shard=2, pp=2), "zero": 2, "microbatches": 2},
    "zero bubble": {"pp": 2, "schedule": "zero_bubble", "microbatches": 4},
    "recompute": {"dp": 2, "microbatches": 2, "recompute": {0: ((0, 3),)}},
}


def decay(optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
    return torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)


def adam(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=1e-2)


def mse(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.mse_loss(output, target)


def data(step: int, count: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(100 + step)
    return torch.randn(count, 8, generator=generator), torch.randn(count, 8, generator=generator)


def own_model(seed: int = 5) -> torch.nn.Module:
    torch.manual_seed(seed)
    return models.Mlp(8, 4, 0.0)


def plain_loop(model: torch.nn.Module, steps: int, clip_norm: float | None = None) -> list[float]:
    optimizer = adam(model.parameters())
    scheduler = decay(optimizer)
    losses = []
    for step in range(steps):
        inputs, target = data(step)
        loss = mse(model(inputs), target)
        loss.backward()  # type: ignore[no-untyped-call]
        if clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(model.parameters(), clip_norm)
        optimizer.step()
        optimizer.zero_grad()
        scheduler.step()
        losses.append(float(loss.detach()))
    return losses


def given(**changes: Any) -> dict[str, Any]:
    return {"loss": mse, "example": data(0), "optimizer": adam, "scheduler": decay, **changes}
