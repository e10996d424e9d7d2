"""What the user says about the parameter servers of a run."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from autopar.core.errors import InputError
from autopar.executor.server.auth import TOKEN_BYTES, new_token
from autopar.executor.server.tls import TlsFiles

TOKEN_VARIABLE = "AUTOPAR_RUN_TOKEN"
_LOOPBACK = "127.0.0.1"
_SHORTEST_TOKEN = 16
PATH_FIELDS = ("certificate", "key", "authority", "token_file")


@dataclass(frozen=True, kw_only=True)
class ServerOptions:
    """Options of parameter servers; only plans that have them take any.

    Attributes:
        certificate: PEM certificate of this host; with ``key`` and ``authority`` everything goes
            between ranks and servers goes through TLS 1.3 and both sides show a certificate.
        key: Its private key, without a password.
        authority: PEM certificates that sign those of all hosts.
        token_file: Secret shared by all hosts, 16 bytes or more; needed with several hosts.
        address: Address of this host that its servers listen on; needed with several hosts,
            loopback on one.
        on_loss: ``fail`` or ``continue``: what the loss of a rank means for ``ps_sync``.
        checkpoint_every: Updates between two checkpoints of a server, 0 for never.

    Raises:
        InputError: A value contradicts another.
    """

    certificate: Path | None = None
    key: Path | None = None
    authority: Path | None = None
    token_file: Path | None = None
    address: str | None = None
    on_loss: Literal["fail", "continue"] = "fail"
    checkpoint_every: int = 0

    def __post_init__(self) -> None:
        for name in PATH_FIELDS:
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, Path(value).expanduser().absolute())
        given = [n for n in ("certificate", "key", "authority") if getattr(self, n) is not None]
        if len(given) not in (0, 3):
            raise InputError(
                f"TLS between servers and workers needs certificate, key and authority, got "
                f"only {' and '.join(given)}",
                hint="pass three PEM files with --server-tls-cert, --server-tls-key and "
                "--server-tls-ca, or none for plain TCP",
            )
        if self.on_loss not in ("fail", "continue"):
            raise InputError(f"on_loss is '{self.on_loss}'", hint="use fail or continue")
        if self.checkpoint_every < 0:
            raise InputError(
                f"servers cannot write a checkpoint every {self.checkpoint_every} updates",
                hint="use 1 or more, or 0 for never",
            )

    @property
    def tls(self) -> TlsFiles | None:
        """Certificates, ``None`` for plain TCP."""
        if self.certificate is None or self.key is None or self.authority is None:
            return None
        return TlsFiles(certificate=self.certificate, key=self.key, authority=self.authority)

    def listen_on(self, nnodes: int) -> str:
        """Address of the servers of this host.

        Raises:
            InputError: There are several hosts and none was given.
        """
        if self.address is None and nnodes > 1:
            raise InputError(
                f"parameter servers on {nnodes} hosts need an address that the others reach",
                hint="pass --server-address with an address of the private network, on each host",
            )
        return self.address or _LOOPBACK

    def token(self, nnodes: int) -> bytes:
        """The secret of this run.

        From the file, else from the environment of a launcher, else a new one.

        Raises:
            InputError: There are several hosts and none was given, or it is too short.
        """
        found = os.environ.get(TOKEN_VARIABLE, "").encode()
        if self.token_file is not None:
            try:
                found = self.token_file.read_bytes().strip()
            except OSError as error:
                raise InputError(
                    f"cannot read token file {self.token_file}: {error.strerror}"
                ) from error
        if not found and nnodes > 1:
            raise InputError(
                f"parameter servers on {nnodes} hosts need a shared token",
                hint="make one with `openssl rand -hex 32 > token`, copy it to all hosts, and "
                "pass --server-token token",
            )
        if found and len(found) < _SHORTEST_TOKEN:
            raise InputError(
                f"the token has {len(found)} bytes, {_SHORTEST_TOKEN} are needed",
                hint=f"use {TOKEN_BYTES} random bytes, such as `openssl rand -hex 32`",
            )
        return found or new_token().hex().encode()
