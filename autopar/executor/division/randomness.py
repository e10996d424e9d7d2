"""Random numbers of ops that work on a rank's part."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils import _pytree as pytree

from autopar.executor.random_state import seed_generators

_SEEDS = 2**62
_STRIDE = 1_000_003


def drawn_apart(target: Callable[..., Any], position: int) -> Callable[..., Any]:
    """A random op that draws other numbers on each rank of a group.

    The ranks share their seed, so that ops they compute alike draw alike; the parts of one tensor
    must not. The op draws from a stream of its own, seeded with the next number of the shared
    one, which thus goes on alike on all ranks. Recomputation replays it with the shared one.

    Args:
        target: The op.
        position: This rank's place in the group.
    """

    def apart(*args: Any, **kwargs: Any) -> Any:
        tensors = [t for t in pytree.tree_leaves(args) if isinstance(t, torch.Tensor)]
        if any(isinstance(t, FakeTensor) for t in tensors):
            return target(*args, **kwargs)
        seed = int(torch.randint(_SEEDS, ()))
        made_on = torch.device(kwargs.get("device") or "cpu")  # where an op without tensors draws
        device = next((t.device for t in tensors), made_on)
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            seed_generators(seed + _STRIDE * position, device)
            return target(*args, **kwargs)

    name = str(getattr(target, "__name__", "random")).partition(".")[0]
    apart.__name__ = apart.__qualname__ = f"{name}_apart"
    apart.draws_random_numbers = True  # type: ignore[attr-defined]
    return apart
