"""Gradients rounded to 8 bits with a scale per block."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from autopar.sync.base import AbstractCompression, Literature, Message, Payload, assumed
from autopar.sync.traffic import all_gather, all_to_all

BLOCK_ELEMENTS = 256
"""Elements that share a float32 scale."""

SCALE_BYTES = 4.0
LEVELS = 127.0
"""Largest number; the largest element of a block gets it."""


@dataclass(frozen=True)
class Int8(AbstractCompression):
    """Two phases, as 8-bit numbers cannot be added in place.

    Each rank sends every other the 8-bit numbers of that one's share, adds what it gets in
    float32, rounds the sum again and gathers the shares of all.
    """

    name: ClassVar[str] = "int8"
    literature: ClassVar[Literature | None] = Literature(
        multiplier=assumed(1.0, 1.1, 1.5),
        citation="Dettmers 2016, 8-Bit Approximations for Parallelism in Deep Learning "
        "(arXiv:1511.04561); Alistarh et al. 2017, QSGD (arXiv:1610.02132)",
        reading="both report the accuracy of 32-bit gradients after the same epochs; value and "
        "upper end are guesses for other tasks and for rounding the sum a second time",
    )

    def encoded_bytes(self, payload: Payload) -> float:
        """``E + 4 ceil(E / 256)``."""
        return payload.elements + SCALE_BYTES * math.ceil(payload.elements / BLOCK_ELEMENTS)

    def sum_messages(self, payload: Payload, ranks: int) -> tuple[Message, ...]:
        """All-to-all and all-gather of the encoded bytes after backward."""
        size = self.encoded_bytes(payload)
        return (all_to_all(size, ranks), all_gather(size, ranks))

    def error_bound(self, ranks: int) -> float | None:
        """Half a level of each block's largest element, in both phases: ``2 sqrt(256) / 254``."""
        return 2.0 * math.sqrt(BLOCK_ELEMENTS) / (2.0 * LEVELS)

    def streamed_bytes(self, payload: Payload, ranks: int) -> float:
        """Encode all, decode and add one share of each rank, encode the sum, decode all."""
        size = self.encoded_bytes(payload)
        return 2.0 * (payload.size_bytes + size) + size + size / ranks

    def memory_bytes(self, payload: Payload, ranks: int) -> float:
        """What is sent and what is received."""
        return 2.0 * self.encoded_bytes(payload)
