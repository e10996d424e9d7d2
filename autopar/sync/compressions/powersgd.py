"""Gradients as products of two thin matrices."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from autopar.sync.base import AbstractCompression, Literature, Message, Option, Payload, assumed
from autopar.sync.traffic import all_reduce

SIDE = 1024
"""Largest side of a matrix; the gradient is cut into squares of 1024 x 1024 elements."""

FACTOR_BYTES = 4.0


@dataclass(frozen=True)
class PowerSgd(AbstractCompression):
    """Rank-``r`` power iteration with error feedback.

    The flat gradient is cut into ``SIDE x SIDE`` squares and one smaller square, padded with
    zeros, for the rest. (Vogels et al. take each layer's own matrix; squares make the bytes
    depend on the size alone.) Per square, ``M Q`` of all ranks is summed, made orthogonal, and
    ``M^T P`` summed; all squares share the two all-reduces.
    """

    rank: int = 4

    name: ClassVar[str] = "powersgd"
    options: ClassVar[tuple[Option, ...]] = (Option(name="rank", low=1, high=SIDE),)
    literature: ClassVar[Literature | None] = Literature(
        multiplier=assumed(1.0, 1.3, 3.0),
        citation="Vogels et al. 2019, PowerSGD (arXiv:1905.13727)",
        reading="test performance on par with SGD after the same epochs at rank 2 to 4 on layer "
        "matrices; value and upper end are guesses for squares of the flat gradient",
    )

    def factor_bytes(self, payload: Payload) -> float:
        """``4 r (1024 floor(E / 1024^2) + ceil(sqrt(rest)))``: one factor of all squares."""
        whole, rest = divmod(payload.elements, SIDE * SIDE)
        return FACTOR_BYTES * self.rank * (SIDE * whole + math.ceil(math.sqrt(rest)))

    def encoded_bytes(self, payload: Payload) -> float:
        """Two factors; the gradient itself when they would be larger."""
        return min(2.0 * self.factor_bytes(payload), payload.size_bytes)

    def sum_messages(self, payload: Payload, ranks: int) -> tuple[Message, ...]:
        """Two all-reduces, one after the other, after backward."""
        half = self.encoded_bytes(payload) / 2.0
        return (all_reduce(half, ranks), all_reduce(half, ranks))

    def streamed_bytes(self, payload: Payload, ranks: int) -> float:
        """The gradient is read for each factor and restored once; the error read and written."""
        return 6.0 * payload.size_bytes

    def memory_bytes(self, payload: Payload, ranks: int) -> float:
        """The error that is fed back, and both factors."""
        return payload.size_bytes + self.encoded_bytes(payload)
