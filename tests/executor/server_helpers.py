"""Real servers in real processes, and workers that talk to them."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from autopar.executor.server.client import Endpoint
from autopar.executor.server.gang import Gang
from autopar.executor.server.layout import Entry
from autopar.executor.server.process import fork_server, listen
from autopar.executor.server.settings import ServerSettings
from autopar.executor.server.tls import TlsFiles, fingerprint_of_file, worker_context
from autopar.sync import parse_sync

TOKEN = b"t" * 32
MakeOptimizer = Callable[[list[torch.nn.Parameter]], torch.optim.Optimizer]


def sgd(parameters: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9)


def adam(parameters: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=0.01)


class Server:
    """A server that can be killed and started again on the same port."""

    def __init__(self, settings: ServerSettings, make: MakeOptimizer) -> None:
        self.settings, self.make = settings, make
        self.listening: socket.socket = listen("127.0.0.1")
        self.port: int = self.listening.getsockname()[1]
        self.pid = fork_server(settings, lambda: make, self.listening)

    @property
    def endpoint(self) -> Endpoint:
        tls = self.settings.tls
        return Endpoint(
            address="127.0.0.1",
            port=self.port,
            fingerprint=fingerprint_of_file(tls) if tls else "",
            owner=self.settings.owner,
        )

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)

    def start(self) -> None:
        self.pid = fork_server(self.settings, lambda: self.make, self.listening)

    def end(self) -> None:
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            self.kill()
        self.listening.close()


@contextlib.contextmanager
def servers(
    count: int,
    discipline: str,
    ranks: int,
    make: MakeOptimizer = sgd,
    folder: Path | None = None,
    **changes: Any,
) -> Iterator[list[Server]]:
    """Servers that are ended at the end."""
    made: list[Server] = []
    make([torch.nn.Parameter(torch.zeros(1))])  # its imports are slow: once, before the forks
    try:
        for index in range(count):
            path = folder / f"server-{index}.ckpt" if folder else None
            settings = ServerSettings(
                discipline=discipline,  # type: ignore[arg-type]
                ranks=tuple(range(ranks)),
                token=TOKEN,
                checkpoint=path,
                **{"grace_s": 0.2, **changes},
            )
            made.append(Server(settings, make))
        yield made
    finally:
        for server in made:
            server.end()


def gang(
    made: Sequence[Server],
    rank: int,
    entries: Sequence[Entry],
    *,
    compression: str = "none",
    timeout_s: float = 20.0,
    tls: TlsFiles | None = None,
    token: bytes = TOKEN,
) -> Gang:
    name = "ps_sync" if compression == "none" else f"ps_sync+{compression}"
    return Gang(
        [server.endpoint for server in made],
        entries,
        rank=rank,
        token=token,
        tls=worker_context(tls) if tls else None,
        compression=parse_sync(name).compression,
        timeout_s=timeout_s,
    )


def fork(body: Callable[[], None]) -> int:
    """A process that runs a body; ends with 1 after an exception."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        body()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def join(pids: Sequence[int]) -> list[int]:
    return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]


ENTRIES = (
    Entry(name="a", shape=(7, 5)),
    Entry(name="b", shape=(7,)),
    Entry(name="scale", shape=()),
    Entry(name="c", shape=(3, 2, 4)),
)
ELEMENTS = sum(entry.numel for entry in ENTRIES)


def weights(seed: int = 0) -> torch.Tensor:
    return torch.randn(ELEMENTS, generator=torch.Generator().manual_seed(seed))


def gradient(rank: int, step: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1000 * step + rank + 1)
    return torch.randn(ELEMENTS, generator=generator)


class Reference:
    """One process with whole parameters."""

    def __init__(self, make: MakeOptimizer, clip: float | None = None) -> None:
        self.clip = clip
        parts = torch.split(weights(), [e.numel for e in ENTRIES])
        self.parameters = [
            torch.nn.Parameter(p.view(e.shape).clone())
            for p, e in zip(parts, ENTRIES, strict=True)
        ]
        self.optimizer = make(self.parameters)

    def step(self, flat: torch.Tensor) -> None:
        parts = torch.split(flat, [e.numel for e in ENTRIES])
        for parameter, part, entry in zip(self.parameters, parts, ENTRIES, strict=True):
            parameter.grad = part.view(entry.shape).clone()
        if self.clip is not None:
            torch.nn.utils.clip_grad_norm_(self.parameters, self.clip)
        self.optimizer.step()

    @property
    def flat(self) -> torch.Tensor:
        return torch.cat([p.detach().reshape(-1) for p in self.parameters])


def make_certificates(folder: Path, name: str = "run") -> TlsFiles:
    """A throw-away authority and one certificate of it."""
    folder.mkdir(parents=True, exist_ok=True)

    def openssl(*arguments: str) -> None:
        try:
            subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)
        except FileNotFoundError:
            pytest.skip("no openssl to make certificates with")

    new_key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    openssl("req", "-x509", *new_key, "-days", "1", "-subj", f"/CN={name} authority",
            "-keyout", "ca.key", "-out", "ca.pem")  # fmt: skip
    openssl("req", *new_key, "-subj", f"/CN={name}", "-keyout", "host.key", "-out", "host.csr")
    openssl("x509", "-req", "-in", "host.csr", "-CA", "ca.pem", "-CAkey", "ca.key",
            "-CAcreateserial", "-days", "1", "-out", "host.pem")  # fmt: skip
    return TlsFiles(
        certificate=folder / "host.pem", key=folder / "host.key", authority=folder / "ca.pem"
    )
