"""Which ranks a plan puts servers beside, and how they work."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from autopar.executor.options import RunOptions
from autopar.executor.server.client import Endpoint
from autopar.executor.server.settings import Discipline, ServerSettings
from autopar.plans import Plan
from autopar.sync import Sync, SyncGroup, parse_sync
from autopar.sync.modes.server import AsynchronousServer, ParameterServer, StaleServer


@dataclass(frozen=True, kw_only=True)
class ServerLink:
    """What a rank's process knows about servers before it meets the others.

    Attributes:
        token: Secret of the run.
        own: Server beside this rank, if any.
        options: The run's options.
    """

    token: bytes
    own: Endpoint | None
    options: RunOptions


def server_sync(plan: Plan) -> Sync | None:
    """The plan's sync mode if it has servers."""
    if plan.sync == "all_reduce":
        return None
    sync = parse_sync(plan.sync)
    return sync if isinstance(sync.mode, ParameterServer) else None


def members(plan: Plan, rank: int) -> tuple[int, ...]:
    """Ranks that train the same weights as a rank, in order."""
    return plan.mesh.group("dp_replicate", rank=rank)


def server_count(plan: Plan, rank: int) -> int:
    """Servers of a rank's weights."""
    sync = server_sync(plan)
    if sync is None:
        return 0
    mode = sync.mode
    assert isinstance(mode, ParameterServer)
    return mode.server_count(SyncGroup(ranks=len(members(plan, rank))))


def independent(plan: Plan, options: RunOptions) -> bool:
    """True when ranks must not wait for each other outside the servers."""
    sync = server_sync(plan)
    if sync is None:
        return False
    return sync.semantics == "stale" or options.servers.on_loss == "continue"


def checkpoint_path(options: RunOptions, rank: int) -> Path:
    """File of the checkpoint of the server beside a rank."""
    return options.out / "servers" / f"rank-{rank}.ckpt"


def settings_for(
    plan: Plan, options: RunOptions, rank: int, token: bytes
) -> ServerSettings | None:
    """Settings of the server beside a rank, ``None`` if it has none.

    The first ``S`` replicas have the ``S`` servers.
    """
    sync, ranks = server_sync(plan), members(plan, rank)
    if sync is None or ranks.index(rank) >= server_count(plan, rank):
        return None
    mode = sync.mode
    discipline: Discipline = "sync"
    if isinstance(mode, StaleServer):
        discipline = "stale"
    elif isinstance(mode, AsynchronousServer):
        discipline = "async"
    return ServerSettings(
        discipline=discipline,
        ranks=ranks,
        token=token,
        owner=rank,
        bound=mode.bound if isinstance(mode, StaleServer) else None,
        clips=plan.clip_norm if discipline == "sync" else None,
        on_loss=options.servers.on_loss,
        checkpoint=checkpoint_path(options, rank),
        checkpoint_every=options.servers.checkpoint_every,
        tls=options.servers.tls,
    )
