"""Tagged point-to-point messages: sends never block, receives are posted ahead of their use."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from autopar.executor.measuring.traffic import Traffic
from autopar.profiler.host import usable_cores

LOOKAHEAD = 2
"""Actions of a sending rank whose messages have buffers posted before they are needed."""


def lookahead(device: torch.device, local_ranks: int, threads: int) -> int:
    """:data:`LOOKAHEAD`, or 0 where ranks leave no core to receive on.

    There a message that arrives while a rank computes is taken in by a thread that interrupts it,
    about 1 ms a message; received when it is needed, it costs what the rank waits anyway.

    Args:
        device: What the rank computes on.
        local_ranks: Ranks on this host.
        threads: Threads of each that compute.
    """
    crowded = usable_cores() <= local_ranks * threads
    return 0 if device.type == "cpu" and crowded else LOOKAHEAD


Channels = dict[tuple[int, int, bool], dist.ProcessGroup]
"""``(source rank, destination rank, carries gradients)`` -> process group."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One tensor of one step.

    Attributes:
        tag: Unique in the step.
        peer: The other rank.
        gradient: Direction: ``False`` activation, ``True`` gradient.
        shape: Shape.
        dtype: Element type.
        sent_by: Position of the sending action in the sender's list.
        used_by: Position of the reading action in the receiver's list.
    """

    tag: int
    peer: int
    gradient: bool
    shape: tuple[int, ...]
    dtype: torch.dtype
    sent_by: int
    used_by: int


class Mailbox:
    """Messages of one rank and step.

    Receives from a peer are posted in the order the peer sends them, the messages of up to
    ``ahead`` of its actions at a time. A message from a peer tells that everything sent
    to that peer for its earlier actions has arrived, which is when send buffers are let go.

    Args:
        incoming: Messages this rank receives in a step.
        device: Where buffers are.
        channels: For backends that order messages by group instead of by tag (NCCL); empty for
            gloo.
        traffic: Counts what is sent.
        ahead: Actions of a sending rank whose messages are waited for before they are needed.
    """

    def __init__(
        self,
        incoming: Sequence[Message],
        device: torch.device,
        channels: Channels,
        traffic: Traffic,
        ahead: int = LOOKAHEAD,
    ) -> None:
        self._ahead = ahead
        self._device = device
        self._channels = channels
        self._traffic = traffic
        self._rank = dist.get_rank()
        self._order: dict[tuple[int, bool], list[Message]] = {}
        for message in sorted(incoming, key=lambda m: (m.sent_by, m.tag)):
            self._order.setdefault((message.peer, message.gradient), []).append(message)
        self._place = {m.tag: i for row in self._order.values() for i, m in enumerate(row)}
        self._next: dict[tuple[int, bool], int] = {}
        self._posted: dict[int, tuple[Any, torch.Tensor]] = {}
        self._flying: dict[int, list[tuple[int, Any, torch.Tensor]]] = {}

    def begin(self) -> None:
        """Start a step: post the first receives."""
        for channel in self._order:
            self._next[channel] = 0
            self._post(channel, -1)

    def _post(self, channel: tuple[int, bool], consumed: int) -> None:
        """Post receives up to ``ahead`` sending actions beyond position ``consumed``."""
        queue = self._order[channel]
        place = self._next[channel]
        ahead: set[int] = {m.sent_by for m in queue[consumed + 1 : place]}
        while place < len(queue):
            message = queue[place]
            if len(ahead | {message.sent_by}) > self._ahead and place > consumed:
                break
            ahead.add(message.sent_by)
            buffer = torch.empty(message.shape, dtype=message.dtype, device=self._device)
            self._posted[message.tag] = (self._receive(message, buffer), buffer)
            place += 1
        self._next[channel] = place

    def _receive(self, message: Message, buffer: torch.Tensor) -> Any:
        group = self._channels.get((message.peer, self._rank, message.gradient))
        return dist.irecv(buffer, message.peer, group=group, tag=message.tag)

    def receive(self, message: Message) -> torch.Tensor:
        """The tensor of a message, waiting for it if it is still under way."""
        channel = (message.peer, message.gradient)
        if message.tag not in self._posted:
            self._post(channel, self._place[message.tag])
        work, buffer = self._posted.pop(message.tag)
        work.wait()
        self._release(message.peer, message.sent_by)
        self._post(channel, self._place[message.tag])
        return buffer

    def send(self, message: Message, tensor: torch.Tensor) -> None:
        """Start sending; the tensor must stay unchanged."""
        ready = tensor.detach().contiguous()
        group = self._channels.get((self._rank, message.peer, message.gradient))
        work = dist.isend(ready, message.peer, group=group, tag=message.tag)
        self._traffic.send(ready)
        self._flying.setdefault(message.peer, []).append((message.used_by, work, ready))

    def _release(self, peer: int, action: int) -> None:
        """Let go of what the peer must have read to have come to ``action``."""
        flying = self._flying.get(peer, [])
        for used_by, work, _ in flying:
            if used_by < action:
                work.wait()
        self._flying[peer] = [entry for entry in flying if entry[0] >= action]

    def finish(self) -> None:
        """Wait until everything sent has left."""
        for flying in self._flying.values():
            for _, work, _ in flying:
                work.wait()
        self._flying.clear()


def make_channels(pairs: Sequence[tuple[int, int, bool]]) -> Channels:
    """A process group per direction and pair of ranks (collective over the world).

    NCCL ignores tags and runs the messages of a pair in the order they are issued, so each
    direction needs a queue of its own.
    """
    return {pair: dist.new_group(sorted(pair[:2])) for pair in pairs}
