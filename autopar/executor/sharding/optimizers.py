"""Optimizers that look at more than one element at a time, on shards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.distributed.tensor import DTensor, Replicate
from torch.overrides import TorchFunctionMode

_ELEMENTWISE = frozenset(
    {
        torch.optim.SGD,
        torch.optim.Adam,
        torch.optim.AdamW,
        torch.optim.NAdam,
        torch.optim.RAdam,
        torch.optim.Adamax,
        torch.optim.Adagrad,
        torch.optim.Adadelta,
        torch.optim.ASGD,
        torch.optim.RMSprop,
        torch.optim.Rprop,
    }
)

_READS = frozenset({"item", "tolist", "__bool__", "__float__", "__int__"})


def is_elementwise(optimizer: torch.optim.Optimizer) -> bool:
    """True when it is known to compute each element from that element's own past."""
    return type(optimizer) in _ELEMENTWISE


def fit_to_shards(optimizer: torch.optim.Optimizer) -> str | None:
    """Make an optimizer's step right for DTensor parameters, whatever it computes.

    Returns:
        A warning when the step communicates, else ``None``.
    """
    if is_elementwise(optimizer):
        return None
    mode = SumBeforeUse()

    def enter(*_: Any) -> None:
        mode.__enter__()  # type: ignore[no-untyped-call]

    def leave(*_: Any) -> None:
        mode.__exit__(None, None, None)  # type: ignore[no-untyped-call]

    optimizer.register_step_pre_hook(enter)
    optimizer.register_step_post_hook(leave)
    return (
        f"optimizer {type(optimizer).__name__} is not known to be elementwise: what it computes "
        "over whole weights travels between the ranks that share them, uncounted and unpriced"
    )


class SumBeforeUse(TorchFunctionMode):
    """Works around two bugs of DTensor (torch 2.11-2.13) with values that are not summed yet.

    The norm of a sharded tensor is left as each rank's term of it. ``square_()`` of that is
    refused; ``item()`` is wrong without a word: it returns the rank's own term. Adafactor does
    both.
    """

    def __torch_function__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Sum the value that is about to be changed in place or read."""
        name = getattr(func, "__name__", "")
        if args and (name in _READS or (name.endswith("_") and not name.endswith("__"))):
            _settle(args[0])
        return func(*args, **(kwargs or {}))


def _settle(value: Any) -> None:
    if isinstance(value, DTensor) and any(p.is_partial() for p in value.placements):
        whole = [Replicate() if p.is_partial() else p for p in value.placements]
        settled = value.redistribute(placements=whole)
        value._local_tensor, value._spec = settled._local_tensor, settled._spec
