"""The largest gradients only."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from autopar.sync.base import AbstractCompression, Literature, Message, Option, Payload, assumed
from autopar.sync.traffic import all_gather

PAIR_BYTES = 8.0
"""A float32 value and an int32 index."""

SELECT_PASSES = 4
"""Passes of a radix select over 32-bit keys, 8 bits each."""


@dataclass(frozen=True)
class TopK(AbstractCompression):
    """Values and indices of the ``density`` largest elements; the others are fed back."""

    density: float = 0.01

    name: ClassVar[str] = "topk"
    options: ClassVar[tuple[Option, ...]] = (
        Option(name="density", low=1e-5, high=1.0, whole=False),
    )
    literature: ClassVar[Literature | None] = Literature(
        multiplier=assumed(1.0, 1.5, 5.0),
        citation="Lin et al. 2018, Deep Gradient Compression (arXiv:1712.01887); "
        "Stich et al. 2018, Sparsified SGD with Memory (arXiv:1809.07599)",
        reading="the rate of SGD once enough steps are taken, and the same accuracy at 0.1 % "
        "density with momentum correction and warm-up, which are not used here; value and upper "
        "end are guesses",
    )

    def kept(self, payload: Payload) -> int:
        """``k = ceil(density E)``."""
        return math.ceil(self.density * payload.elements)

    def encoded_bytes(self, payload: Payload) -> float:
        """``8 k``."""
        return PAIR_BYTES * self.kept(payload)

    def sum_messages(self, payload: Payload, ranks: int) -> tuple[Message, ...]:
        """One all-gather per bucket: every rank ends with ``8 k n`` bytes."""
        return (all_gather(ranks * self.encoded_bytes(payload), ranks, "backward"),)

    def streamed_bytes(self, payload: Payload, ranks: int) -> float:
        """Error added (3 passes), selection, result cleared, ``k n`` pairs added."""
        passes = 3 + SELECT_PASSES + 1
        return passes * payload.size_bytes + ranks * self.encoded_bytes(payload)

    def memory_bytes(self, payload: Payload, ranks: int) -> float:
        """The error that is fed back, and the pairs of all ranks."""
        return payload.size_bytes + ranks * self.encoded_bytes(payload)
