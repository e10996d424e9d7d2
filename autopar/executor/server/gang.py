"""All servers of a run, as one worker sees them."""

from __future__ import annotations

import contextlib
import itertools
import math
import ssl
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import torch

from autopar.core.errors import TrainingError
from autopar.executor.server.client import Endpoint, ServerClient
from autopar.executor.server.encoding import Encoder
from autopar.executor.server.layout import Entry, Piece, share_out
from autopar.executor.server.protocol import Frame, Kind
from autopar.executor.server.shard import StateImage
from autopar.sync.base import AbstractCompression

T = TypeVar("T")
State = dict[str, dict[str, Any]]
"""Parameter name -> key -> tensor or number."""


class Gang:
    """Pushes gradients to all servers and pulls weights from them, side by side.

    Args:
        endpoints: One per server.
        entries: Parameters, all of one dtype.
        rank: This worker.
        token: Secret of the run.
        tls: Context of this side, ``None`` for plain TCP.
        compression: Of pushed gradients.
        timeout_s: How long an answer may take.
        by_parameter: Never cut a parameter.

    Attributes:
        generation: How often the weights were set; all workers count alike.
    """

    def __init__(
        self,
        endpoints: Sequence[Endpoint],
        entries: Sequence[Entry],
        *,
        rank: int,
        token: bytes,
        tls: ssl.SSLContext | None,
        compression: AbstractCompression,
        timeout_s: float,
        by_parameter: bool = False,
    ) -> None:
        self.entries = tuple(entries)
        self.generation = 0
        self._shards = share_out(entries, len(endpoints), by_parameter=by_parameter)
        sizes = [sum(p.numel for p in shard) for shard in self._shards]
        self._edges = [0, *itertools.accumulate(sizes)]
        self._clients = [ServerClient(e, rank, token, tls, timeout_s) for e in endpoints]
        self._encoders = [Encoder(compression) for _ in endpoints]
        self._pool = ThreadPoolExecutor(len(endpoints), thread_name_prefix="server")
        self._rank = rank
        self._server_sent_bytes = 0
        self._taken_bytes = 0

    def _each(self, job: Callable[[int], T]) -> list[T]:
        """A job per server, side by side; the first error is raised after all have ended."""
        futures = [self._pool.submit(job, s) for s in range(len(self._clients))]
        errors = [error for error in (f.exception() for f in futures) if error is not None]
        if errors:
            raise errors[0]
        return [f.result() for f in futures]

    def _part(self, flat: torch.Tensor, server: int) -> torch.Tensor:
        return flat[self._edges[server] : self._edges[server + 1]]

    # weights and state

    def set_weights(self, flat: torch.Tensor, step: int, share: float, state: State) -> None:
        """Give the servers weights and optimizer state; one worker does it.

        The others call :meth:`next_generation` instead, and wait in their first pull.

        Args:
            flat: All parameters, on the CPU.
            step: Steps done.
            share: Factor on the learning rate.
            state: Of the optimizer, of whole parameters; empty for none.
        """
        self.next_generation()

        def give(s: int) -> None:
            image = _cut_state(self._shards[s], self.entries, state)
            header = {
                "generation": self.generation,
                "step": step,
                "share": share,
                "pieces": [piece.to_json() for piece in self._shards[s]],
                "state": image.rows,
            }
            tensors = [self._part(flat, s), *image.tensors]
            self._clients[s].request(Frame(kind=Kind.INIT, header=header, tensors=tensors))

        self._each(give)

    def next_generation(self) -> None:
        """The weights are being set anew by some worker."""
        self.generation += 1
        for encoder in self._encoders:
            encoder.forget()

    def state(self) -> State:
        """The optimizer's state of whole parameters, from all servers."""
        header = {"generation": self.generation}
        answers = self._each(
            lambda s: self._clients[s].request(Frame(kind=Kind.STATE, header=header))
        )
        return _join_state(self._shards, self.entries, answers)

    # steps

    def pull(self, step: int, into: torch.Tensor) -> None:
        """Weights that ``step`` starts from; waits as the mode says.

        Args:
            step: Step to start.
            into: Flat, all parameters, on the CPU; written.
        """
        frame = self._pull_frame(step, None)
        self._each(lambda s: self._clients[s].request(frame, self._part(into, s)))

    def exchange(
        self,
        step: int,
        gradient: torch.Tensor,
        absent: set[str],
        *,
        start: int,
        into: torch.Tensor,
        clips: bool = False,
    ) -> None:
        """Push the gradient of a step and pull the weights of a later one.

        Args:
            step: Step that was computed.
            gradient: Flat, all parameters, on the CPU; may be changed.
            absent: Parameters without a gradient; zeros stand for them.
            start: Step that the pulled weights are for.
            into: As in :meth:`pull`.
            clips: The servers wait for the norm over all of them.

        Raises:
            TrainingError: A server answered with an error, or the norm is not finite.
        """
        pushes = self._each(lambda s: self._push_frame(s, step, gradient, absent))
        if not clips:
            pull = self._pull_frame(start, None)

            def both(s: int) -> Frame:
                client, frames = self._clients[s], [pushes[s], pull]
                return client.repeat(lambda: client.ask(frames, self._part(into, s)))[0]

            self._note(self._each(both))
            return
        self._clipped(step, pushes, start, into)

    def _clipped(self, step: int, pushes: list[Frame], start: int, into: torch.Tensor) -> None:
        """Push, learn the norm over all servers, pull with it."""
        ask = Frame(kind=Kind.NORM, header={"generation": self.generation, "step": step})

        def norm(s: int) -> tuple[Frame, float | None, int]:
            client = self._clients[s]
            pushed, answer = client.repeat(lambda: client.ask([pushes[s], ask]))
            return pushed, answer.header.get("square"), client.connections

        found = self._each(norm)
        self._note([pushed for pushed, _, _ in found])
        squares = [square for _, square, _ in found if square is not None]
        if len(squares) < len(found):
            raise TrainingError(
                f"the norm of the gradient of step {step} is not finite",
                hint="lower the learning rate",
            )
        pull = self._pull_frame(start, math.sqrt(math.fsum(squares)))

        def weights(s: int) -> Frame:
            client, before = self._clients[s], found[s][2]

            def body() -> list[Frame]:
                again = [pushes[s]] if client.connections != before else []
                return client.ask([*again, pull], self._part(into, s))

            return client.repeat(body)[-1]

        self._each(weights)

    def _push_frame(
        self, server: int, step: int, gradient: torch.Tensor, absent: set[str]
    ) -> Frame:
        encoder, shard = self._encoders[server], self._shards[server]
        header = {
            "generation": self.generation,
            "step": step,
            "encoding": encoder.name,
            "absent": [i for i, piece in enumerate(shard) if piece.name in absent],
        }
        tensors = encoder.encode(self._part(gradient, server))
        return Frame(kind=Kind.PUSH, header=header, tensors=tensors)

    def _pull_frame(self, step: int, norm: float | None) -> Frame:
        header: dict[str, Any] = {"generation": self.generation, "step": step}
        if norm is not None:
            header["norm"] = norm
        return Frame(kind=Kind.PULL, header=header)

    def _note(self, answers: list[Frame]) -> None:
        """Remember how much the server beside this rank had sent to others before a push.

        Taken there, for weights of one step are sent to members at different times.
        """
        for client, answer in zip(self._clients, answers, strict=True):
            if client.endpoint.owner == self._rank:
                self._server_sent_bytes = int(answer.header["sent"])

    # the run

    @property
    def sent_bytes(self) -> int:
        """Bytes that this rank has sent to servers beside other ranks."""
        return sum(c.sent_bytes for c in self._clients if c.endpoint.owner != self._rank)

    @property
    def received_bytes(self) -> dict[int, int]:
        """Rank -> bytes of weights that the server beside it has sent to this one."""
        found: dict[int, int] = {}
        for client in self._clients:
            if client.endpoint.owner != self._rank:
                owner = client.endpoint.owner
                found[owner] = found.get(owner, 0) + client.received_bytes
        return found

    def take_sent_bytes(self) -> int:
        """Bytes that left this rank since the last call: its own and those of its server.

        What goes between a rank and the server beside it does not leave the host.
        """
        total = self.sent_bytes + self._server_sent_bytes
        taken, self._taken_bytes = total - self._taken_bytes, total
        return taken

    def status(self) -> list[dict[str, Any]]:
        """What each server says about its members, asked once.

        Raises:
            OSError: One cannot be reached.
        """
        return self._each(lambda s: self._clients[s].once(Frame(kind=Kind.STATUS)).header)

    def leave(self) -> None:
        """Say goodbye; a server that is gone already is no error."""
        self._each(self._farewell)

    def _farewell(self, server: int) -> None:
        with contextlib.suppress(OSError):
            self._clients[server].once(Frame(kind=Kind.LEAVE))

    def close(self) -> None:
        """Close all connections."""
        for client in self._clients:
            client.close()
        self._pool.shutdown(wait=False)


def _cut_state(pieces: Sequence[Piece], entries: Sequence[Entry], state: State) -> StateImage:
    """The part of the state that belongs to a shard.

    Tensors of a parameter's shape are cut as it is; others (a step count) go to every piece.
    """
    shapes = {entry.name: entry.shape for entry in entries}
    image = StateImage()
    for index, piece in enumerate(pieces):
        for key, value in state.get(piece.name, {}).items():
            if not isinstance(value, torch.Tensor):
                image.rows.append([index, key, value])
                continue
            image.rows.append([index, key])
            tensor = value.detach().cpu().contiguous()
            if tuple(tensor.shape) == shapes[piece.name] and tensor.dim():
                flat = tensor.reshape(-1)[piece.start : piece.start + piece.numel]
                tensor = flat.view(piece.shape)
            image.tensors.append(tensor)
    return image


def _join_state(
    shards: Sequence[Sequence[Piece]], entries: Sequence[Entry], answers: Sequence[Frame]
) -> State:
    shapes = {entry.name: entry.shape for entry in entries}
    state: State = {}
    for shard, answer in zip(shards, answers, strict=True):
        tensors = iter(answer.tensors[1:])
        for index, key, *value in answer.header["state"]:
            piece = shard[index]
            own = state.setdefault(piece.name, {})
            if value:
                own[key] = value[0]
                continue
            tensor, shape = next(tensors), shapes[piece.name]
            if tuple(tensor.shape) != piece.shape or not piece.shape or piece.shape == shape:
                own[key] = tensor
                continue
            target = own.setdefault(key, torch.empty(shape, dtype=tensor.dtype))
            target.view(-1)[piece.start : piece.start + piece.numel] = tensor.reshape(-1)
    return state
