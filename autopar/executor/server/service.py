"""One parameter server: connections, who may speak, and what each frame does."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import socket
from collections.abc import Awaitable, Callable
from typing import Any

from autopar.core.errors import AutoparError
from autopar.executor.server.auth import new_nonce, same, server_proof, worker_proof
from autopar.executor.server.connection import Connection
from autopar.executor.server.core import Core
from autopar.executor.server.disciplines import rules_of
from autopar.executor.server.encoding import decode
from autopar.executor.server.protocol import (
    MAX_PAYLOAD_BYTES,
    Frame,
    Kind,
    Limits,
    ProtocolError,
    text,
    whole,
)
from autopar.executor.server.settings import ServerSettings
from autopar.executor.server.shard import MakeOptimizer
from autopar.executor.server.tls import server_context

log = logging.getLogger("autopar.server")
_STRANGER_S = 5.0
_MAX_STRANGERS = 256
_PUSH_SLACK_BYTES = 4096
_PUSH_ELEMENT_BYTES = 8


class Service:
    """A server on one listening socket.

    Args:
        settings: How it works.
        make_optimizer: The task's optimizer.
    """

    def __init__(self, settings: ServerSettings, make_optimizer: MakeOptimizer) -> None:
        self.settings = settings
        self.core = Core(settings, make_optimizer)
        self.rules = rules_of(self.core)
        self.refused = 0
        self._connections: dict[int, Connection] = {}
        self._strangers = 0
        self._sent_away_bytes = 0
        self._over = asyncio.Event()

    async def run(self, listening: socket.socket) -> None:
        """Serve until all members have left or are lost.

        Goes on from the checkpoint if there is one.

        Args:
            listening: Bound and listening.

        Raises:
            InputError: The checkpoint is damaged, or a certificate cannot be used.
        """
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(_log_exception)
        path = self.settings.checkpoint
        if path is not None and path.exists():
            await self.core.restore(path)
            self._sweep_later(self.settings.return_s)
        tls = server_context(self.settings.tls) if self.settings.tls is not None else None
        server = await loop.create_server(
            lambda: Connection(self._serve, self._count_refused),
            sock=listening,
            ssl=tls,
            ssl_handshake_timeout=_STRANGER_S if tls is not None else None,
            ssl_shutdown_timeout=_STRANGER_S if tls is not None else None,
        )
        try:
            await self._over.wait()
        finally:
            server.close()
            for connection in list(self._connections.values()):
                connection.close()
            self.core.close()

    def _count_refused(self, why: str) -> None:
        self.refused += 1

    # one connection

    async def _serve(self, connection: Connection) -> None:
        """Greet, then answer frame after frame until the connection ends."""
        try:
            if not await self._greeted(connection):
                return
            while True:
                frame = await connection.read()
                await connection.send(await self._answer(connection, frame))
                if frame.kind is Kind.LEAVE:
                    self._end_if_finished()
        except (ConnectionError, OSError):
            pass
        except ProtocolError as error:
            connection.refuse(str(error))
        except Exception:
            log.exception("closing connection of rank %d after an error", connection.rank)
            connection.abort()
        finally:
            self._gone(connection)

    async def _greeted(self, connection: Connection) -> bool:
        """True once the peer has proved that it belongs to the run."""
        if self._strangers >= _MAX_STRANGERS:
            connection.refuse("too many connections that did not say who they are")
            return False
        self._strangers += 1
        try:
            async with asyncio.timeout(_STRANGER_S):
                await self._greet(connection)
        except TimeoutError:
            connection.refuse("it did not say who it is")
            return False
        finally:
            self._strangers -= 1
        return True

    async def _greet(self, connection: Connection) -> None:
        nonce = new_nonce()
        await connection.send(Frame(kind=Kind.CHALLENGE, header={"nonce": nonce}))
        hello = await connection.read()
        if hello.kind is not Kind.HELLO:
            raise ProtocolError(f"a {hello.kind.name} came before HELLO")
        rank, theirs = whole(hello.header, "rank", 2**20), text(hello.header, "nonce")
        expected = worker_proof(self.settings.token, nonce, theirs, rank)
        if not same(text(hello.header, "proof"), expected):
            await connection.send(Frame(kind=Kind.ERROR, header={"message": "wrong token"}))
            raise ProtocolError("wrong token")
        previous = self._connections.pop(rank, None)
        if previous is not None:
            previous.abort()  # the worker connects again because that one is dead
        connection.rank, connection.limits = rank, self._limits
        self._connections[rank] = connection
        self.core.membership.join(rank)
        proof = server_proof(self.settings.token, nonce, theirs)
        header = {
            "proof": proof,
            "pushed": self.core.applied.get(rank, 0),
            "slowest": self.core.membership.slowest(),
        }
        await connection.send(Frame(kind=Kind.WELCOME, header=header))

    def _limits(self) -> Limits:
        """What a member may send: weights of any size, gradients of the shard, else no tensors."""
        shard = self.core.shard
        push = MAX_PAYLOAD_BYTES if shard is None else _PUSH_ELEMENT_BYTES * shard.elements
        return Limits(
            payload_bytes=0,
            by_kind={Kind.INIT: MAX_PAYLOAD_BYTES, Kind.PUSH: push + _PUSH_SLACK_BYTES},
        )

    def _gone(self, connection: Connection) -> None:
        """A connection ended."""
        rank = connection.rank
        if rank < 0 or self._connections.get(rank) is not connection:
            return
        del self._connections[rank]
        loop = asyncio.get_running_loop()
        self.core.membership.disconnect(rank, loop.time())
        self._sweep_later(self.settings.grace_s)

    def _sweep_later(self, delay_s: float) -> None:
        loop = asyncio.get_running_loop()
        loop.call_later(delay_s + 0.01, lambda: loop.create_task(self._sweep()))

    async def _sweep(self) -> None:
        """Give up members that did not come back."""
        now_s = asyncio.get_running_loop().time()
        gone = self.core.membership.drop_lost(now_s, self.settings.grace_s)
        if gone:
            log.warning("lost rank %s", ", ".join(str(rank) for rank in gone))
            await self.rules.lost(gone)
        self._end_if_finished()

    def _end_if_finished(self) -> None:
        if self.core.membership.finished:
            self._over.set()

    # frames

    async def _answer(self, connection: Connection, frame: Frame) -> Frame:
        """The answer to a frame; an error of the run goes to the worker as such."""
        handlers: dict[Kind, Callable[[Connection, Frame], Awaitable[Frame]]] = {
            Kind.INIT: self._init,
            Kind.PUSH: self._push,
            Kind.NORM: self._norm,
            Kind.PULL: self._pull,
            Kind.STATE: self._state,
            Kind.STATUS: self._status,
            Kind.LEAVE: self._leave,
        }
        handler = handlers.get(frame.kind)
        if handler is None:
            raise ProtocolError(f"a worker does not send {frame.kind.name}")
        try:
            return await handler(connection, frame)
        except ProtocolError:
            raise
        except AutoparError as error:
            return _error(error.message, error.hint)
        except Exception as error:
            log.exception("a %s of rank %d failed", frame.kind.name, connection.rank)
            await self.core.fail(f"a server failed: {type(error).__name__}: {error}")
            return _error(str(self.core.failure), None)

    async def _init(self, connection: Connection, frame: Frame) -> Frame:
        await self.core.set_weights(frame)
        self.rules.reset()
        return Frame(kind=Kind.REPLY)

    async def _push(self, connection: Connection, frame: Frame) -> Frame:
        header, core = frame.header, self.core
        await core.expect_generation(whole(header, "generation"))
        step = whole(header, "step")
        shard = core.held()
        rows = header.get("absent", [])
        if not isinstance(rows, list):
            raise ProtocolError("field 'absent' is no list")
        absent = {whole({"piece": r}, "piece", len(shard.pieces)) for r in rows}
        dtype, name = shard.weights.dtype, text(header, "encoding")
        try:
            gradient = await asyncio.get_running_loop().run_in_executor(
                None, decode, name, frame.tensors, shard.elements, dtype
            )
        except (RuntimeError, TypeError, ValueError) as error:
            raise ProtocolError(f"a push cannot be decoded: {error}") from error
        await self.rules.push(connection.rank, step, gradient, absent)
        return Frame(kind=Kind.REPLY, header={"sent": self._sent_away_bytes})

    async def _norm(self, connection: Connection, frame: Frame) -> Frame:
        await self.core.expect_generation(whole(frame.header, "generation"))
        square = await self.rules.square(whole(frame.header, "step"))
        return Frame(kind=Kind.REPLY, header={"square": _finite(square)})

    async def _pull(self, connection: Connection, frame: Frame) -> Frame:
        await self.core.expect_generation(whole(frame.header, "generation"))
        norm = frame.header.get("norm")
        if norm is not None and not (isinstance(norm, float) and norm >= 0):
            raise ProtocolError("field 'norm' is no norm")
        weights = await self.rules.pull(whole(frame.header, "step"), norm)
        size = weights.numel() * weights.element_size()
        if connection.rank != self.settings.owner:
            self._sent_away_bytes += size
        header = {"version": self.core.version}
        return Frame(kind=Kind.REPLY, header=header, tensors=[weights])

    async def _state(self, connection: Connection, frame: Frame) -> Frame:
        await self.core.expect_generation(whole(frame.header, "generation"))
        image = await self.core.state_frame(self.core.version)
        header = {k: image.header[k] for k in ("state", "step")}
        return Frame(kind=Kind.REPLY, header=header, tensors=image.tensors)

    async def _status(self, connection: Connection, frame: Frame) -> Frame:
        membership = self.core.membership
        header: dict[str, Any] = {
            "clocks": {str(rank): member.clock for rank, member in membership.members.items()},
            "lost": sorted(membership.lost),
            "left": sorted(membership.left),
            "version": self.core.version,
            "max_lead": membership.max_lead,
            "refused": self.refused,
        }
        return Frame(kind=Kind.REPLY, header=header)

    async def _leave(self, connection: Connection, frame: Frame) -> Frame:
        self.core.membership.leave(connection.rank)
        await self.core.notify()
        return Frame(kind=Kind.REPLY)


def _finite(value: float) -> float | None:
    """JSON has no infinity; ``None`` stands for a norm that overflowed."""
    return value if math.isfinite(value) else None


def _error(message: str, hint: str | None) -> Frame:
    return Frame(kind=Kind.ERROR, header={"message": message, "hint": hint})


def _log_exception(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Failed handshakes and the like are told, and nothing else happens."""
    with contextlib.suppress(Exception):
        log.warning("%s: %s", context.get("message"), context.get("exception"))
