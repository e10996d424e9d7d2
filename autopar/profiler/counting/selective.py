"""Selective recompute: results of products are kept, everything else is computed again.

A product is what the cost model calls one: a kernel that has FLOPs (matrix products,
convolutions, fused attention).
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts

from autopar.profiler.counting.flops import is_product

_DROPOUT = "dropout_p"


def contexts() -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
    """What to run a range of ops in, the first time and again."""
    first, again = create_selective_checkpoint_contexts(_policy)  # type: ignore[no-untyped-call]
    return first, again


def _policy(_: Any, kernel: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    kept = is_product(kernel) and not _draws(kernel, args, kwargs)
    return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE


def _draws(kernel: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """True for attention with dropout.

    Skipped the second time, it would leave its random numbers to the next op.
    """
    for position, argument in enumerate(kernel._schema.arguments):
        if argument.name == _DROPOUT:
            given = args[position] if position < len(args) else kwargs.get(_DROPOUT, 0.0)
            return bool(given)
    return False
