"""Random streams of the data order, each for one purpose and one step or epoch."""

from __future__ import annotations

from enum import IntEnum

import torch


class Purpose(IntEnum):
    """What random numbers are for. Values are part of the data order: never change one."""

    SEQUENCE = 1
    PERMUTATION = 2
    EPOCH = 3
    DRAW = 4
    POOL = 5


def stream(seed: int, purpose: Purpose, number: int) -> torch.Generator:
    """A generator for one purpose and one step or epoch, independent of all others."""
    mixed = (seed * 1_000_003 + int(purpose)) * 1_000_003 + number
    return torch.Generator().manual_seed(mixed % (2**63))
