"""Bytes one rank sends and receives in a collective, ring algorithms."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from autopar.sync.base import Message, Overlap


def all_reduce(size_bytes: float, ranks: int, overlap: Overlap = "none") -> Message:
    """Sum on every rank: ``2 (n-1)/n`` of the tensor each way (Patarasuk & Yuan 2009)."""
    wire = 2.0 * (ranks - 1) / ranks * size_bytes
    return Message(
        kind="all_reduce",
        size_bytes=size_bytes,
        sent_bytes=wire,
        received_bytes=wire,
        overlap=overlap,
    )


def all_gather(size_bytes: float, ranks: int, overlap: Overlap = "none") -> Message:
    """Every rank ends with all ``size_bytes``; ``(n-1)/n`` of them pass each way."""
    wire = (ranks - 1) / ranks * size_bytes
    return Message(
        kind="all_gather",
        size_bytes=size_bytes,
        sent_bytes=wire,
        received_bytes=wire,
        overlap=overlap,
    )


def all_to_all(size_bytes: float, ranks: int, overlap: Overlap = "none") -> Message:
    """Every rank sends ``1/n`` of its ``size_bytes`` to each other rank."""
    wire = (ranks - 1) / ranks * size_bytes
    return Message(
        kind="all_to_all",
        size_bytes=size_bytes,
        sent_bytes=wire,
        received_bytes=wire,
        overlap=overlap,
    )


PUSH_FRAME_BYTES = 108
"""Of a push beside its tensors: 20 bytes of prefix and a JSON header (step, encoding, shape)."""
PULL_FRAME_BYTES = 46
"""Of the question for weights."""


def push(encoded_bytes: float, ranks: int, servers: int, overlap: Overlap) -> Message:
    """Each rank sends ``1/S`` of its payload to each server; servers are ranks too.

    Counted on a rank with a server, which push and pull together load most: it sends ``(S-1)/S``
    of its payload and receives ``(n-1)/S`` of one. That sets the time: of an all-to-all in which
    a rank gets as much. A rank without a server sends its whole payload and receives nothing.
    Shards end between rows of parameters, so a rank may send a row more or less.
    """
    return Message(
        kind="all_to_all",
        size_bytes=encoded_bytes * ranks / servers,
        sent_bytes=(servers - 1) * (encoded_bytes / servers + PUSH_FRAME_BYTES),
        received_bytes=(ranks - 1) / servers * encoded_bytes,
        overlap=overlap,
    )


def pull(size_bytes: float, ranks: int, servers: int, overlap: Overlap) -> Message:
    """The way back of :func:`push`: each server sends its shard to each other rank."""
    there = push(size_bytes, ranks, servers, overlap)
    return replace(
        there,
        sent_bytes=there.received_bytes + (servers - 1) * PULL_FRAME_BYTES,
        received_bytes=(servers - 1) / servers * size_bytes,
    )


def periodic(messages: Iterable[Message], per_step: float) -> tuple[Message, ...]:
    """The same messages ``per_step`` times a step, after the step, hidden behind nothing."""
    return tuple(replace(m, per_step=m.per_step * per_step, overlap="none") for m in messages)
