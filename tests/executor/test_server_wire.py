"""Frames: what is written is read, and nothing else does harm."""

from __future__ import annotations

import json
import random
import socket
import struct
from pathlib import Path

import pytest
import server_helpers as helpers
import torch

from autopar.core.errors import InputError, TrainingError
from autopar.executor.server.checkpoint import read_frame, write_frame
from autopar.executor.server.client import ServerClient
from autopar.executor.server.protocol import (
    MAGIC,
    MAX_PAYLOAD_BYTES,
    PREFIX,
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
)


def bytes_of(frame: Frame) -> bytes:
    head, views = encode(frame)
    return head + b"".join(views)


def parse(data: bytes, limits: Limits | None = None) -> Frame:
    kind, header_bytes, payload_bytes = decode_prefix(data[:PREFIX_BYTES], limits or Limits())
    header = decode_header(data[PREFIX_BYTES : PREFIX_BYTES + header_bytes], payload_bytes)
    payload = torch.tensor(list(data[PREFIX_BYTES + header_bytes :]), dtype=torch.uint8)
    return Frame(kind=kind, header=header, tensors=decode_tensors(header, payload))


TENSORS = [
    torch.arange(3, dtype=torch.int8),
    torch.randn(2, 3),
    torch.tensor(4.0, dtype=torch.float64),
    torch.empty(0, 5),
    torch.randn(5).to(torch.bfloat16),
    torch.tensor([True, False]),
]


def test_every_type_comes_back_whatever_its_place() -> None:
    frame = parse(bytes_of(Frame(kind=Kind.PUSH, header={"step": 3}, tensors=TENSORS)))
    assert (frame.kind, frame.header) == (Kind.PUSH, {"step": 3})
    for found, sent in zip(frame.tensors, TENSORS, strict=True):
        assert found.dtype == sent.dtype
        assert torch.equal(found, sent)


def test_complex_numbers_are_not_sent() -> None:
    with pytest.raises(ProtocolError, match="complex64"):
        encode(Frame(kind=Kind.PUSH, tensors=[torch.zeros(2, dtype=torch.complex64)]))


def with_header(header: object, payload: bytes = b"", kind: int = Kind.PUSH) -> bytes:
    text = json.dumps(header).encode() if not isinstance(header, bytes) else header
    return PREFIX.pack(MAGIC, 1, kind, 0, len(text), len(payload)) + text + payload


BAD = {
    "magic": b"HTTP" + bytes(16),
    "version": PREFIX.pack(MAGIC, 9, 1, 0, 2, 0) + b"{}",
    "kind": PREFIX.pack(MAGIC, 1, 99, 0, 2, 0) + b"{}",
    "empty header": PREFIX.pack(MAGIC, 1, 2, 0, 0, 0),
    "huge header": PREFIX.pack(MAGIC, 1, 2, 0, 2**32 - 1, 0),
    "huge payload": PREFIX.pack(MAGIC, 1, 5, 0, 2, 2**63) + b"{}",
    "not json": with_header(b"\x80\x04\x95pickle"),
    "not an object": with_header([1, 2]),
    "nested": with_header(b"[" * 4000),
    "infinity": with_header(b'{"norm": Infinity}'),
    "huge number": with_header(b'{"step": ' + b"9" * 5000 + b"}"),
    "unlisted payload": with_header({}, b"1234"),
    "unknown type": with_header({"tensors": [["object", [1]]]}, b"12345678"),
    "negative size": with_header({"tensors": [["int8", [-4, -1]]]}, b"1234"),
    "huge tensor": with_header({"tensors": [["int8", [2**50, 0]]]}),
    "many dimensions": with_header({"tensors": [["int8", [1] * 9]]}, b"1"),
    "row of five": with_header({"tensors": [["int8", [1], 2, 3, 4]]}, b"1"),
}


@pytest.mark.parametrize("name", BAD)
def test_broken_frames_are_refused(name: str) -> None:
    data = BAD[name]
    with pytest.raises(ProtocolError):
        parse(data)


def test_strangers_may_send_little() -> None:
    frame = Frame(kind=Kind.PUSH, tensors=[torch.zeros(1)])
    with pytest.raises(ProtocolError, match="over the limit"):
        parse(bytes_of(frame), STRANGER)


def mutated(chooser: random.Random) -> bytes:
    """A valid frame with something changed, or noise."""
    kind = chooser.choice(list(Kind))
    header = {
        "generation": chooser.choice([0, 1, 5, -1, "x", None, 2**60]),
        "step": chooser.choice([0, 1, -3, 1.5, [], 2**52]),
        "encoding": chooser.choice(["none", "int8", "topk", "zip", 7]),
        "absent": chooser.choice([[], [0], [99], "no", [None]]),
        "pieces": chooser.choice([[], [["a", 0, [2]]], [["a", 0]], 3]),
        "state": chooser.choice([[], [[0, "k"]], [[9, "k", 1]], "s"]),
        "share": chooser.choice([1.0, 0.0, "x"]),
        "norm": chooser.choice([1.0, -1.0, "n"]),
    }
    for key in list(header):
        if chooser.random() < 0.3:
            del header[key]
    tensors = [t for t in TENSORS if chooser.random() < 0.3]
    data = bytearray(bytes_of(Frame(kind=kind, header=header, tensors=tensors)))
    how = chooser.random()
    if how < 0.3:
        for _ in range(chooser.randint(1, 4)):
            data[chooser.randrange(len(data))] = chooser.randrange(256)
    elif how < 0.4:
        del data[chooser.randrange(len(data)) :]
    elif how < 0.5:
        data = bytearray(chooser.randbytes(chooser.randint(1, 200)))
    return bytes(data)


def drain(connection: socket.socket) -> None:
    try:
        while connection.recv(65536):
            pass
    except OSError:
        pass


class Member(ServerClient):
    """One that has been greeted and then sends anything."""

    def send_raw(self, data: bytes) -> None:
        self._connect()
        assert self._socket is not None
        self._socket.settimeout(0.05)
        self._socket.sendall(data)
        drain(self._socket)
        self.close()


@pytest.mark.parametrize("greeted", [False, True])
def test_noise_does_not_end_a_server(greeted: bool, tmp_path: Path) -> None:
    chooser = random.Random(7)
    with helpers.servers(1, "async", 1, grace_s=60.0) as made:
        good = helpers.gang(made, 0, helpers.ENTRIES)
        good.set_weights(helpers.weights(), 0, 1.0, {})
        into = torch.empty(helpers.ELEMENTS)
        for round_ in range(120):
            data = chooser.choice(list(BAD.values())) if round_ % 3 == 0 else mutated(chooser)
            try:
                if greeted:
                    Member(made[0].endpoint, 1, helpers.TOKEN, None, 1.0).send_raw(data)
                else:
                    with socket.create_connection(("127.0.0.1", made[0].port)) as connection:
                        connection.settimeout(0.02)
                        connection.sendall(data)
                        drain(connection)
            except OSError:
                pass
        status = good.status()[0]
        assert status["refused"] > 20
        good.exchange(status["clocks"]["0"], helpers.gradient(0, 0), set(), start=0, into=into)
        assert not torch.equal(into, helpers.weights())


def test_a_wrong_token_is_refused() -> None:
    with helpers.servers(1, "async", 1) as made:
        client = ServerClient(made[0].endpoint, 0, b"x" * 32, None, 2.0)
        with pytest.raises(TrainingError, match="wrong token"):
            client.request(Frame(kind=Kind.STATUS))


def test_a_server_that_does_not_know_the_token_is_refused() -> None:
    """A listener in a server's place cannot prove itself."""

    def impostor(listening: socket.socket) -> None:
        connection, _ = listening.accept()
        connection.sendall(bytes_of(Frame(kind=Kind.CHALLENGE, header={"nonce": "00"})))
        connection.recv(4096)
        connection.sendall(bytes_of(Frame(kind=Kind.WELCOME, header={"proof": "0" * 64})))
        drain(connection)

    with socket.create_server(("127.0.0.1", 0)) as listening:
        pid = helpers.fork(lambda: impostor(listening))
        endpoint = helpers.Endpoint(address="127.0.0.1", port=listening.getsockname()[1])
        client = ServerClient(endpoint, 0, helpers.TOKEN, None, 2.0)
        with pytest.raises(InputError, match="does not know the token"):
            client.request(Frame(kind=Kind.STATUS))
        assert helpers.join([pid]) == [0]


def test_a_changed_bit_in_a_checkpoint_is_found(tmp_path: Path) -> None:
    path = tmp_path / "shard"
    write_frame(path, Frame(kind=Kind.INIT, header={"step": 1}, tensors=TENSORS))
    assert torch.equal(read_frame(path).tensors[1], TENSORS[1])
    whole = path.read_bytes()
    for place in range(len(whole)):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << (place % 8)
        path.write_bytes(damaged)
        with pytest.raises(InputError, match="cannot read server checkpoint"):
            read_frame(path)
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        with pytest.raises(InputError):
            read_frame(path)


def test_limits_are_stated() -> None:
    assert struct.calcsize("<4sBBHIQ") == PREFIX_BYTES == 20
    assert MAX_PAYLOAD_BYTES == 64 * 2**30
