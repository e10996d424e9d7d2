"""Options of ``autopar run`` that say how parameter servers work."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from autopar.executor.server.options import ServerOptions

PANEL = "Parameter servers"


class OnLoss(StrEnum):
    """What the loss of a rank means for ``ps_sync``."""

    FAIL = "fail"
    CONTINUE = "continue"


TlsCert = Annotated[
    Path | None,
    typer.Option(
        "--server-tls-cert",
        help="PEM certificate of this host: TLS 1.3, both sides show one.",
        rich_help_panel=PANEL,
    ),
]
TlsKey = Annotated[
    Path | None,
    typer.Option(
        "--server-tls-key", help="Its private key, without a password.", rich_help_panel=PANEL
    ),
]
TlsCa = Annotated[
    Path | None,
    typer.Option(
        "--server-tls-ca",
        help="PEM certificates that sign those of all hosts.",
        rich_help_panel=PANEL,
    ),
]
Token = Annotated[
    Path | None,
    typer.Option(
        "--server-token",
        help="File with the secret of the run, the same on all hosts; needed on several.",
        rich_help_panel=PANEL,
    ),
]
Address = Annotated[
    str | None,
    typer.Option(
        "--server-address",
        help="Address of this host that its servers listen on; needed on several hosts.",
        rich_help_panel=PANEL,
    ),
]
Loss = Annotated[
    OnLoss,
    typer.Option(
        "--server-on-loss",
        help="What ps_sync does when a rank is lost; stale modes always continue.",
        rich_help_panel=PANEL,
    ),
]
CheckpointEvery = Annotated[
    int,
    typer.Option(
        "--server-checkpoint-every",
        min=0,
        help="Updates between two checkpoints of a server, from which it is started again.",
        rich_help_panel=PANEL,
    ),
]


def server_options(
    *,
    tls_cert: Path | None,
    tls_key: Path | None,
    tls_ca: Path | None,
    token: Path | None,
    address: str | None,
    on_loss: OnLoss,
    checkpoint_every: int,
) -> ServerOptions:
    """The options as the executor takes them.

    Raises:
        InputError: One contradicts another.
    """
    from autopar.executor.server.options import ServerOptions

    return ServerOptions(
        certificate=tls_cert,
        key=tls_key,
        authority=tls_ca,
        token_file=token,
        address=address,
        on_loss=on_loss.value,
        checkpoint_every=checkpoint_every,
    )
