"""Gradients rounded to 16 bits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from autopar.sync.base import AbstractCompression, Literature, Message, Payload, assumed
from autopar.sync.traffic import all_reduce

HALF_BYTES = 2.0
LITERATURE = Literature(
    multiplier=assumed(1.0, 1.0, 1.1),
    citation="Micikevicius et al. 2018, Mixed Precision Training (arXiv:1710.03740), table 1",
    reading="16-bit training matches float32 accuracy after the same epochs; only the sum of "
    "gradients is in 16 bits here; the upper end is a guess at small or badly scaled gradients",
)


@dataclass(frozen=True)
class _Half(AbstractCompression):
    """One all-reduce of two bytes per element."""

    literature: ClassVar[Literature | None] = LITERATURE
    significand_bits: ClassVar[int]

    def encoded_bytes(self, payload: Payload) -> float:
        """``2 E`` for ``E`` elements."""
        return HALF_BYTES * payload.elements

    def sum_messages(self, payload: Payload, ranks: int) -> tuple[Message, ...]:
        """An all-reduce in 16 bits, bucket by bucket beside backward."""
        return (all_reduce(self.encoded_bytes(payload), ranks, "backward"),)

    def error_bound(self, ranks: int) -> float | None:
        """One rounding per term and per addition, ``n 2^-bits``; not for subnormal terms."""
        return ranks * 2.0**-self.significand_bits

    def streamed_bytes(self, payload: Payload, ranks: int) -> float:
        """Read, rounded, written; and back."""
        return 2.0 * (payload.size_bytes + self.encoded_bytes(payload))

    def check(self, payload: Payload) -> str | None:
        """Gradients must be wider than 16 bits."""
        if payload.element_bytes > HALF_BYTES:
            return None
        return f"{self.name} needs gradients wider than {HALF_BYTES:g} bytes"


@dataclass(frozen=True)
class Float16(_Half):
    """IEEE half precision: 11 bits of significand, overflows at 65504."""

    name: ClassVar[str] = "fp16"
    significand_bits: ClassVar[int] = 11


@dataclass(frozen=True)
class BFloat16(_Half):
    """bfloat16: 8 bits of significand, the range of float32."""

    name: ClassVar[str] = "bf16"
    significand_bits: ClassVar[int] = 8
