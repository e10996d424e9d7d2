"""From the parts of a rank's peak to its bytes: one formula for traced graphs and published rows.

    peak = margin * (states + kept + working + loss + update beyond what is freed + buffers)
           + context and communicators

Planner (:mod:`autopar.cost.memory`) and validation (:mod:`autopar.validation.memory.peak`) count
the parts from different descriptions of a run and put them together here, so that what is
validated is what plans. All functions take numbers or arrays.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from autopar.calibration.memory import REFERENCE_MULTIPROCESSORS, MemoryConstants

Value = TypeVar("Value", float, npt.NDArray[np.float64])

RESERVED_SHARE = 0.012
"""Part of an accelerator's memory that the driver keeps: an A100 of 80 GiB reports 79.1."""


def usable_bytes(memory_bytes: Value) -> Value:
    """Memory of an accelerator that processes can allocate."""
    return memory_bytes * (1 - RESERVED_SHARE)


def total_bytes(served: Value, margin: float | Value, context: float | Value) -> Value:
    """The peak of a rank.

    Args:
        served: What tensors take.
        margin: What the allocator holds over what it serves: rounding and fragmentation.
        context: What the process has beside its tensors.
    """
    total: Value = served * margin + context
    return total


def update_bytes(c: MemoryConstants, update: Value, freed: Value) -> Value:
    """What temporaries of the optimizer's shard add to the peak.

    They follow the activations, so ``max(a, u) + share * min(a, u)`` in place of the sum.

    Args:
        c: Constants.
        update: Bytes of the temporaries.
        freed: Bytes that existed in forward and backward only.
    """
    least: Value = np.minimum(update, freed)
    return update - (1 - c.update_share) * least


def room_beside_update(c: MemoryConstants, room: Value, update: Value) -> Value:
    """Most bytes of forward and backward that fit: ``a + update_bytes(a) <= room`` solved for a.

    Negative where the update alone does not fit.
    """
    share = max(c.update_share, 1e-9)
    larger, smaller = room - share * update, (room - update) / share
    least: Value = np.minimum(larger, smaller)
    return least


def loss_bytes(c: MemoryConstants, logits: Value, factor: float | Value) -> Value:
    """Logits, their copies and gradients at the peak of the loss.

    Args:
        c: Constants.
        logits: Elements on a rank.
        factor: Of the loss, see ``LOSS_FACTORS``.
    """
    total: Value = logits * c.logit_bytes * factor
    return total


def context_bytes(c: MemoryConstants, multiprocessors: Value) -> Value:
    """Context, libraries and workspaces of a process on an accelerator."""
    return multiprocessors * (c.framework_bytes / REFERENCE_MULTIPROCESSORS)


def communicator_count(degrees: Iterable[int], ranks: int) -> int:
    """Groups a rank belongs to: one per parallel dimension, and all ranks."""
    return sum(degree > 1 for degree in degrees) + (ranks > 1)
