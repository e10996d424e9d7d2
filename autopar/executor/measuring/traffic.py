"""Bytes this rank sends, counted where the calls are made.

Interface counters would mix in other processes, so collectives are counted by the formula of the
algorithm that gloo and NCCL use for large messages.
"""

from __future__ import annotations

import torch


class Traffic:
    """Running count of bytes sent by this rank."""

    def __init__(self) -> None:
        self.sent_bytes = 0.0

    def send(self, tensor: torch.Tensor) -> None:
        """One point-to-point message."""
        self.sent_bytes += tensor.numel() * tensor.element_size()

    def all_reduce(self, size_bytes: float, ranks: int) -> None:
        """Ring all-reduce: every rank sends 2 (n-1)/n of the payload."""
        self.sent_bytes += 2 * (ranks - 1) / ranks * size_bytes

    def all_gather(self, size_bytes: float, ranks: int) -> None:
        """Ring all-gather of parts that together have ``size_bytes``."""
        self.sent_bytes += (ranks - 1) / ranks * size_bytes

    def reduce_scatter(self, size_bytes: float, ranks: int) -> None:
        """Reduce-scatter of a tensor of ``size_bytes`` on each rank."""
        self.sent_bytes += (ranks - 1) / ranks * size_bytes

    def all_to_all(self, size_bytes: float, ranks: int) -> None:
        """Exchange of equal pieces of a tensor of ``size_bytes`` on each rank."""
        self.sent_bytes += (ranks - 1) / ranks * size_bytes

    def broadcast(self, size_bytes: float, ranks: int, position: int) -> None:
        """Binomial tree from position 0: position p sends once to every child it has."""
        children = 0
        step = 1
        while step < ranks:
            if position < step and position + step < ranks:
                children += 1
            step *= 2
        self.sent_bytes += children * size_bytes

    def take(self) -> float:
        """Bytes since the last call."""
        sent, self.sent_bytes = self.sent_bytes, 0.0
        return sent
