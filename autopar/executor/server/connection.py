"""A server's end of one connection: frames in, frames out, on asyncio.

Payloads are read straight into the memory of their tensors. A frame that breaks a rule ends the
connection; the service goes on.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable, Coroutine
from typing import Any

import torch

from autopar.executor.server.protocol import (
    PREFIX_BYTES,
    STRANGER,
    Frame,
    Kind,
    Limits,
    ProtocolError,
    decode_header,
    decode_prefix,
    decode_tensors,
    encode,
    raw,
)

log = logging.getLogger("autopar.server")
_CHUNK_BYTES = 1024**2


class Connection(asyncio.BufferedProtocol):
    """Frames over one transport.

    Args:
        serve: Runs for as long as the connection lives.
        refused: Told when a frame breaks a rule.

    Attributes:
        limits: Gives the lengths accepted now; small until the peer has proved itself.
        rank: Of the worker, -1 before it said.
        sent_bytes: Frames written, without what TLS and TCP add.
    """

    def __init__(
        self,
        serve: Callable[[Connection], Coroutine[Any, Any, None]],
        refused: Callable[[str], None],
    ) -> None:
        self._serve = serve
        self._refused = refused
        self.limits: Callable[[], Limits] = lambda: STRANGER
        self.rank = -1
        self.sent_bytes = 0
        self._frames: asyncio.Queue[Frame | None] = asyncio.Queue()
        self._writable = asyncio.Event()
        self._writable.set()
        self._transport: Any = None
        self._task: asyncio.Task[None] | None = None
        self._kind = Kind.ERROR
        self._header: dict[str, Any] | None = None
        self._payload = torch.empty(0, dtype=torch.uint8)
        self._payload_bytes = 0
        self._expect("prefix", PREFIX_BYTES)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Start serving.

        asyncio leaves Nagle's algorithm on for a socket made without a protocol number, as
        ``socket.create_server`` makes it: small answers would wait 40 ms for a delayed
        acknowledgement.
        """
        self._transport = transport
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._task = asyncio.get_running_loop().create_task(self._serve(self))

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop serving."""
        self._writable.set()
        self._frames.put_nowait(None)
        if self._task is not None:
            self._task.cancel()

    @property
    def peer(self) -> str:
        """Address of the other side."""
        name = self._transport.get_extra_info("peername")
        return f"{name[0]}:{name[1]}" if isinstance(name, tuple) else str(name)

    # reading

    def _expect(self, stage: str, size: int) -> None:
        self._stage = stage
        self._filled = 0
        buffer = torch.empty(size, dtype=torch.uint8)
        self._target = raw(buffer)
        if stage == "payload":
            self._payload = buffer

    def get_buffer(self, sizehint: int) -> memoryview:
        """Where the next bytes belong."""
        return self._target[self._filled :]

    def buffer_updated(self, nbytes: int) -> None:
        """Bytes have come."""
        self._filled += nbytes
        if self._filled < len(self._target):
            return
        try:
            self._advance()
        except ProtocolError as error:
            self.refuse(str(error))

    def _advance(self) -> None:
        """The current part is complete."""
        if self._stage == "prefix":
            self._kind, header_bytes, self._payload_bytes = decode_prefix(
                self._target, self.limits()
            )
            self._expect("header", header_bytes)
            return
        if self._stage == "header":
            self._header = decode_header(self._target, self._payload_bytes)
            if self._payload_bytes:
                self._expect("payload", self._payload_bytes)
                return
            self._payload = torch.empty(0, dtype=torch.uint8)
        assert self._header is not None
        tensors = decode_tensors(self._header, self._payload)
        self._frames.put_nowait(Frame(kind=self._kind, header=self._header, tensors=tensors))
        self._payload = torch.empty(0, dtype=torch.uint8)
        self._transport.pause_reading()
        self._expect("prefix", PREFIX_BYTES)

    async def read(self) -> Frame:
        """The next frame.

        Raises:
            ConnectionResetError: There is none.
        """
        if self._frames.empty() and not self._transport.is_closing():
            self._transport.resume_reading()
        frame = await self._frames.get()
        if frame is None:
            raise ConnectionResetError("closed")
        return frame

    def refuse(self, why: str) -> None:
        """Log and close."""
        log.warning("closed connection from %s (rank %d): %s", self.peer, self.rank, why)
        self._refused(why)
        self._transport.abort()

    # writing

    def pause_writing(self) -> None:
        """The send buffer is full."""
        self._writable.clear()

    def resume_writing(self) -> None:
        """The send buffer has room."""
        self._writable.set()

    async def send(self, frame: Frame) -> None:
        """Write a frame, waiting while the send buffer is full.

        Raises:
            ConnectionResetError: The connection is gone.
        """
        head, views = encode(frame)
        await self._write(head)
        for view in views:
            for start in range(0, len(view), _CHUNK_BYTES):
                await self._write(view[start : start + _CHUNK_BYTES])

    async def _write(self, data: bytes | memoryview) -> None:
        if self._transport.is_closing():
            raise ConnectionResetError("closed")
        self._transport.write(data)
        self.sent_bytes += len(data)
        await self._writable.wait()

    def close(self) -> None:
        """Close after what was written has gone."""
        self._transport.close()

    def abort(self) -> None:
        """Close at once."""
        self._transport.abort()
