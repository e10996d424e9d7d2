"""Parameter servers, sharded over ranks of the group."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from autopar.sync.base import (
    AbstractCompression,
    AbstractSyncMode,
    Literature,
    Message,
    Option,
    Overlap,
    Payload,
    Semantics,
    SyncGroup,
    assumed,
)
from autopar.sync.traffic import pull, push

SERVERS = Option(name="servers", low=1)
UPDATE_PASSES = 7.0
"""Weights, gradient and two moments read, weights and moments written (Adam)."""

STALENESS = (
    "Ho et al. 2013, More Effective Distributed ML via a Stale Synchronous Parallel Parameter "
    "Server (NIPS 2013); Dai et al. 2019, Toward Understanding the Impact of Staleness in "
    "Distributed Machine Learning (arXiv:1810.03264)"
)


@dataclass(frozen=True)
class ParameterServer(AbstractSyncMode):
    """Ranks push gradients to the servers, which step, and pull weights.

    Servers run beside the ranks, each with ``1/S`` of the weights and of the optimizer state.
    Over all ranks ``2 (n-1) P`` bytes are sent per step, however many servers there are. With a
    server on every rank each sends ``2 (n-1)/n P``, as in an all-reduce. Gradients are
    compressed, weights are not.
    """

    pushes: ClassVar[Overlap] = "step"
    pulls: ClassVar[Overlap] = "step"
    steps_on_servers: ClassVar[bool] = True
    refuses: ClassVar[tuple[str, ...]] = ("powersgd",)
    """Its second factor needs the sum of the first, which a push does not wait for."""

    def server_count(self, group: SyncGroup) -> int:
        """Servers, one per rank unless the name says how many."""
        servers: int | None = getattr(self, "servers")  # noqa: B009  # a field of each subclass
        return group.ranks if servers is None else servers

    def messages(
        self, payload: Payload, group: SyncGroup, compression: AbstractCompression
    ) -> tuple[Message, ...]:
        """Push of encoded gradients, pull of weights."""
        servers = self.server_count(group)
        return (
            push(compression.encoded_bytes(payload), group.ranks, servers, self.pushes),
            pull(payload.size_bytes, group.ranks, servers, self.pulls),
        )

    def streamed_bytes(
        self, payload: Payload, group: SyncGroup, compression: AbstractCompression
    ) -> float:
        """Encoding on the rank; an update of the shard for every push on the server."""
        shard = payload.size_bytes / self.server_count(group)
        encode = 0.0 if compression.exact else compression.streamed_bytes(payload, 1)
        return encode + group.ranks * UPDATE_PASSES * shard

    def memory_bytes(
        self, payload: Payload, group: SyncGroup, compression: AbstractCompression
    ) -> float:
        """A server's weights and gradient sum, and the compression's error."""
        shard = payload.size_bytes / self.server_count(group)
        return 2.0 * shard + compression.memory_bytes(payload, 1)

    def state_share(self, group: SyncGroup) -> float:
        """Optimizer state lives on the servers."""
        return 1.0 / self.server_count(group)

    def check(self, group: SyncGroup) -> str | None:
        """Servers are ranks of the group."""
        servers = self.server_count(group)
        if servers <= group.ranks:
            return None
        return f"{servers} parameter servers need {servers} ranks, there are {group.ranks}"


@dataclass(frozen=True)
class SynchronousServer(ParameterServer):
    """Servers wait for the gradients of all ranks, then step once."""

    servers: int | None = None

    name: ClassVar[str] = "ps_sync"
    semantics: ClassVar[Semantics] = "exact"
    options: ClassVar[tuple[Option, ...]] = (SERVERS,)
    pushes: ClassVar[Overlap] = "backward"
    pulls: ClassVar[Overlap] = "none"

    def streamed_bytes(
        self, payload: Payload, group: SyncGroup, compression: AbstractCompression
    ) -> float:
        """Encoding on the rank; ``n`` gradients of the shard added on the server."""
        servers = self.server_count(group)
        encode = 0.0 if compression.exact else compression.streamed_bytes(payload, 1)
        return encode + 3.0 * (group.ranks - 1) * payload.size_bytes / servers


@dataclass(frozen=True)
class StaleServer(ParameterServer):
    """A rank may be at most ``bound`` steps ahead of the slowest (stale synchronous parallel)."""

    bound: int = 4
    servers: int | None = None

    name: ClassVar[str] = "ps_stale"
    semantics: ClassVar[Semantics] = "stale"
    options: ClassVar[tuple[Option, ...]] = (Option(name="bound", low=1), SERVERS)
    literature: ClassVar[Literature | None] = Literature(
        multiplier=assumed(1.0, 1.5, 5.0),
        citation=STALENESS,
        reading="the bound keeps convergence; its price reaches from none to several times the "
        "steps with depth of the model and kind of optimizer; the figures are guesses in between",
    )


@dataclass(frozen=True)
class AsynchronousServer(ParameterServer):
    """A rank never waits for another; nothing bounds how old its weights are."""

    servers: int | None = None

    name: ClassVar[str] = "ps_async"
    semantics: ClassVar[Semantics] = "stale"
    options: ClassVar[tuple[Option, ...]] = (SERVERS,)
    literature: ClassVar[Literature | None] = Literature(
        multiplier=assumed(1.0, 2.0, 10.0),
        citation="Chen et al. 2016, Revisiting Distributed Synchronous SGD (arXiv:1604.00981); "
        + STALENESS,
        reading="accuracy falls as workers, and with them staleness, grow, and some models do "
        "not converge; the figures are guesses, the upper end is not a bound",
    )
