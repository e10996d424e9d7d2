"""Gradients as they are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from autopar.sync.base import AbstractCompression, Message, Payload
from autopar.sync.traffic import all_reduce


@dataclass(frozen=True)
class NoCompression(AbstractCompression):
    """One all-reduce of ``P`` bytes."""

    name: ClassVar[str] = "none"
    exact: ClassVar[bool] = True

    def encoded_bytes(self, payload: Payload) -> float:
        """``P``."""
        return payload.size_bytes

    def sum_messages(self, payload: Payload, ranks: int) -> tuple[Message, ...]:
        """An all-reduce, bucket by bucket beside backward."""
        return (all_reduce(payload.size_bytes, ranks, "backward"),)

    def error_bound(self, ranks: int) -> float | None:
        """Nothing is rounded."""
        return 0.0

    def streamed_bytes(self, payload: Payload, ranks: int) -> float:
        """Nothing beside the collective's own work."""
        return 0.0
