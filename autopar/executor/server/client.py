"""A worker's end of the connection to one server: blocking, with back-off and repetition.

Requests may be repeated after a broken connection: the server applies a push once per rank and
step, and everything else only reads or sets what is already so.
"""

from __future__ import annotations

import random
import socket
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch

from autopar.core.errors import InputError, TrainingError
from autopar.executor.server.auth import new_nonce, same, server_proof, worker_proof
from autopar.executor.server.protocol import (
    PREFIX_BYTES,
    Frame,
    Kind,
    Limits,
    decode_header,
    decode_prefix,
    decode_tensors,
    encode,
    raw,
    text,
)
from autopar.executor.server.tls import fingerprint

T = TypeVar("T")
_FIRST_PAUSE_S = 0.02
_LONGEST_PAUSE_S = 1.0
_CONNECT_S = 5.0


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """Where a server is.

    Attributes:
        address: IP address or name.
        port: TCP port.
        fingerprint: SHA-256 of its certificate, empty for plain TCP.
        owner: Rank beside which it runs.
    """

    address: str
    port: int
    fingerprint: str = ""
    owner: int = -1


class ServerClient:
    """One server.

    Args:
        endpoint: Where it is.
        rank: This worker.
        token: Secret of the run.
        tls: Context of this side, ``None`` for plain TCP.
        timeout_s: How long an answer, or a server that is being restarted, may take.

    Attributes:
        sent_bytes: Frames written, without what TLS and TCP add.
        received_bytes: Tensors read, without headers.
        pushed: Steps of this rank that the server had applied when it was last greeted.
        slowest: Steps that the slowest member had done then.
        connections: How often it connected.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        rank: int,
        token: bytes,
        tls: ssl.SSLContext | None,
        timeout_s: float,
    ) -> None:
        self.endpoint = endpoint
        self.rank = rank
        self.sent_bytes = 0
        self.received_bytes = 0
        self.pushed = 0
        self.slowest = 0
        self.connections = 0
        self._token = token
        self._tls = tls
        self._timeout_s = timeout_s
        self._socket: socket.socket | None = None

    # requests

    def request(self, frame: Frame, into: torch.Tensor | None = None) -> Frame:
        """Send a frame and wait for its answer; again when the connection breaks.

        Raises:
            TrainingError: The server answered with an error, or cannot be reached in time.
        """
        return self.repeat(lambda: self.ask([frame], into)[0])

    def ask(self, frames: list[Frame], into: torch.Tensor | None = None) -> list[Frame]:
        """Send frames one after the other and read their answers, once.

        Args:
            frames: Requests.
            into: Where the one tensor of the last answer goes, flat.

        Raises:
            TrainingError: The server answered with an error.
            OSError: The connection broke.
        """
        for frame in frames:
            self._send(frame)
        last = len(frames) - 1
        return [self._receive(into if i == last else None) for i in range(len(frames))]

    def repeat(self, body: Callable[[], T]) -> T:
        """Run requests over a connection, again from the start when it breaks.

        Raises:
            TrainingError: It cannot be reached in time, or refuses us.
        """
        deadline_s = time.monotonic() + self._timeout_s
        pause_s = _FIRST_PAUSE_S
        while True:
            try:
                self._connect()
                return body()
            except OSError as error:
                self.close()
                if _refusal(error):
                    raise TrainingError(
                        f"rank {self.rank} and parameter server {self._name} do not accept each "
                        f"other's certificates: {error}",
                        hint="use certificates of one authority on all hosts",
                    ) from error
                if time.monotonic() + pause_s > deadline_s:
                    refused = self._tls is not None and not self.connections
                    why = ", or does not accept this one's certificate" if refused else ""
                    raise TrainingError(
                        f"rank {self.rank} cannot reach parameter server {self._name} for "
                        f"{self._timeout_s:g} s{why}: {error}",
                        hint="see the server's log; allow more with timeout_s if it is only slow",
                    ) from error
                time.sleep(pause_s * random.uniform(0.5, 1.0))
                pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
            except BaseException:
                self.close()
                raise

    def once(self, frame: Frame) -> Frame:
        """Send a frame and wait for its answer, without another try.

        Raises:
            OSError: The server cannot be reached.
            TrainingError: It answered with an error.
        """
        try:
            self._connect()
            return self.ask([frame])[0]
        except OSError:
            self.close()
            raise

    @property
    def _name(self) -> str:
        return f"{self.endpoint.address}:{self.endpoint.port}"

    # connection

    def _connect(self) -> None:
        if self._socket is not None:
            return
        place = (self.endpoint.address, self.endpoint.port)
        plain = socket.create_connection(place, timeout=min(_CONNECT_S, self._timeout_s))
        try:
            plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            plain.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            self._socket = plain if self._tls is None else self._tls.wrap_socket(plain)
            self._check_fingerprint()
            self._greet()
            self._socket.settimeout(self._timeout_s)
            self.connections += 1
        except BaseException:
            self.close()
            plain.close()
            raise

    def _check_fingerprint(self) -> None:
        if not isinstance(self._socket, ssl.SSLSocket) or not self.endpoint.fingerprint:
            return
        der = self._socket.getpeercert(binary_form=True) or b""
        if not same(fingerprint(der), self.endpoint.fingerprint):
            raise InputError(
                f"server {self._name} has another certificate than the run's store says",
                hint="something else listens there, or answers in its place",
            )

    def _greet(self) -> None:
        challenge = self._receive(None, Limits(header_bytes=4096, payload_bytes=0))
        nonce, mine = text(challenge.header, "nonce"), new_nonce()
        proof = worker_proof(self._token, nonce, mine, self.rank)
        hello = {"rank": self.rank, "nonce": mine, "proof": proof}
        self._send(Frame(kind=Kind.HELLO, header=hello))
        welcome = self._receive(None, Limits(header_bytes=4096, payload_bytes=0))
        if not same(text(welcome.header, "proof"), server_proof(self._token, nonce, mine)):
            raise InputError(
                f"server {self._name} does not know the token of this run",
                hint="something else listens there, or answers in its place",
            )
        self.pushed = int(welcome.header.get("pushed", 0))
        self.slowest = int(welcome.header.get("slowest", 0))

    def close(self) -> None:
        """Close the connection; the next request opens another."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    # frames

    def _send(self, frame: Frame) -> None:
        assert self._socket is not None
        head, views = encode(frame)
        parts: list[bytes | memoryview] = [head, *views]
        for part in parts:
            self._socket.sendall(part)
            self.sent_bytes += len(part)

    def _receive(self, into: torch.Tensor | None, limits: Limits | None = None) -> Frame:
        """One answer.

        Raises:
            TrainingError: It is an error.
            OSError: The connection broke.
        """
        prefix = self._read(memoryview(bytearray(PREFIX_BYTES)))
        kind, header_bytes, payload_bytes = decode_prefix(prefix, limits or Limits())
        header = decode_header(self._read(memoryview(bytearray(header_bytes))), payload_bytes)
        if kind is Kind.ERROR:
            raise TrainingError(text(header, "message"), hint=header.get("hint"))
        self.received_bytes += payload_bytes
        if into is not None and payload_bytes == into.numel() * into.element_size():
            self._read(raw(into))
            header.pop("tensors", None)
            return Frame(kind=kind, header=header, tensors=[into])
        payload = torch.empty(payload_bytes, dtype=torch.uint8)
        self._read(raw(payload))
        return Frame(kind=kind, header=header, tensors=decode_tensors(header, payload))

    def _read(self, target: memoryview) -> memoryview:
        assert self._socket is not None
        done = 0
        while done < len(target):
            count = self._socket.recv_into(target[done:])
            if not count:
                raise ConnectionResetError("the server closed the connection")
            done += count
        return target


def _refusal(error: OSError) -> bool:
    """True when trying again cannot help."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return True
    return isinstance(error, ssl.SSLError) and "alert" in str(error).lower()
