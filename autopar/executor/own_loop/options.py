"""SessionOptions: how a plan is joined from inside a script."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class SessionOptions:
    """How a plan is joined and checked in a user's own script.

    Attributes:
        clip_norm: Overrides ``plan.clip_norm``.
        steps: Steps the loop will take, those before a loaded checkpoint included. Post-local
            SGD needs it: it parts replicas after a share of them.
        node_size: Ranks that count as one node of hierarchical averaging; those of this host by
            default.
        device: ``cpu`` or ``cuda``; ``auto`` takes CUDA where every local rank can have one.
        timeout_s: How long a collective may take before training is given up.
        verify: Compare one step on the example with one process before training.
        tolerance: Largest relative difference ``verify`` accepts; by the plan's precision if not
            given.
    """

    clip_norm: float | None = None
    steps: int | None = None
    node_size: int | None = None
    device: str = "auto"
    timeout_s: float = 300.0
    verify: bool = False
    tolerance: float | None = None
