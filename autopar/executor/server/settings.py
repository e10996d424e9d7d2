"""How one server of a run works."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from autopar.executor.server.tls import TlsFiles

Discipline = Literal["sync", "stale", "async"]
OnLoss = Literal["fail", "continue"]


@dataclass(frozen=True, kw_only=True)
class ServerSettings:
    """Settings of one server; the same on all servers of a run but for ``owner`` and files.

    Attributes:
        discipline: ``sync`` waits for all members, ``stale`` bounds how far one may be ahead,
            ``async`` waits for nobody.
        ranks: Members that are expected.
        token: Shared secret of the run.
        owner: Rank beside which the server runs; what it sends to that rank does not leave
            the host and is not counted. -1 for none.
        bound: Of ``stale``, steps.
        clips: ``sync``: gradients are clipped, so a step waits for the norm over all servers.
        on_loss: What a lost member means for ``sync``; the others always go on.
        grace_s: How long a broken connection may take to come back.
        return_s: How long members may take to come back after the server was restarted.
        checkpoint: File of the server's own checkpoint.
        checkpoint_every: Updates between two of them, 0 for never.
        tls: Certificates, ``None`` for plain TCP.
    """

    discipline: Discipline
    ranks: tuple[int, ...]
    token: bytes
    owner: int = -1
    bound: int | None = None
    clips: float | None = None
    on_loss: OnLoss = "fail"
    grace_s: float = 1.0
    return_s: float = 30.0
    checkpoint: Path | None = None
    checkpoint_every: int = 0
    tls: TlsFiles | None = None
