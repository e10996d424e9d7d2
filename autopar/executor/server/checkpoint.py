"""A server's own checkpoint: one frame and its SHA-256, replaced by a rename."""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path

import torch

from autopar.core.errors import InputError
from autopar.executor.server.protocol import (
    PREFIX_BYTES,
    Frame,
    Limits,
    ProtocolError,
    decode_header,
    decode_prefix,
    decode_tensors,
    encode,
    raw,
)

_DIGEST_BYTES = 32


def write_frame(path: Path, frame: Frame) -> None:
    """Write a frame so that a reader finds the old one or the new one, whole.

    Raises:
        OSError: The place cannot be written; the old file is untouched.
    """
    head, views = encode(frame)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as stream:
            digest = hashlib.sha256()
            parts: list[bytes | memoryview] = [head, *views]
            for part in parts:
                digest.update(part)
                stream.write(part)
            stream.write(digest.digest())
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def read_frame(path: Path) -> Frame:
    """Read what :func:`write_frame` wrote.

    Raises:
        InputError: Missing, cut short, or with a changed bit.
    """
    try:
        size = path.stat().st_size
        body = torch.from_file(str(path), shared=False, size=size, dtype=torch.uint8)
        view = raw(body)
        content, digest = view[:-_DIGEST_BYTES], view[-_DIGEST_BYTES:]
        if hashlib.sha256(content).digest() != bytes(digest):
            raise ProtocolError("its checksum is wrong")
        limits = Limits(header_bytes=size, payload_bytes=size)
        kind, header_bytes, payload_bytes = decode_prefix(content[:PREFIX_BYTES], limits)
        start = PREFIX_BYTES + header_bytes
        header = decode_header(content[PREFIX_BYTES:start], payload_bytes)
        payload = body[start : start + payload_bytes].clone()
        return Frame(kind=kind, header=header, tensors=decode_tensors(header, payload))
    except (OSError, RuntimeError, ValueError, ProtocolError) as error:
        raise InputError(
            f"cannot read server checkpoint {path}: {error}",
            hint="start the run again from its last checkpoint with --resume",
        ) from error
