"""Frames between workers and servers: data only, every length checked before it is believed.

A frame is a 20-byte prefix, a JSON header and the bytes of its tensors::

    magic "APPS" | version u8 | kind u8 | 0 u16 | header length u32 | payload length u64

all little-endian. The header is one JSON object; its ``tensors`` lists ``[dtype, shape]`` of
what follows, in order, without gaps. Nothing of a frame is ever executed or unpickled.
"""

from __future__ import annotations

import enum
import json
import math
import struct
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from autopar.core.errors import AutoparError, EnvironmentUnableError

MAGIC = b"APPS"
VERSION = 1
PREFIX = struct.Struct("<4sBBHIQ")
PREFIX_BYTES = PREFIX.size
MAX_HEADER_BYTES = 4 * 1024**2
MAX_PAYLOAD_BYTES = 64 * 1024**3
MAX_TENSORS = 65536
MAX_DIMENSIONS = 8
MAX_STEP = 2**53

DTYPES = {
    "float64": torch.float64,
    "int64": torch.int64,
    "float32": torch.float32,
    "int32": torch.int32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "int8": torch.int8,
    "uint8": torch.uint8,
    "bool": torch.bool,
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


class Kind(enum.IntEnum):
    """What a frame asks for or answers."""

    CHALLENGE = 1
    HELLO = 2
    WELCOME = 3
    INIT = 4
    PUSH = 5
    NORM = 6
    PULL = 7
    STATE = 8
    STATUS = 9
    LEAVE = 10
    REPLY = 11
    ERROR = 12


class ProtocolError(AutoparError):
    """The other side sent something that is no frame, or not one it may send now."""

    code = "protocol"


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Largest lengths a receiver accepts.

    Attributes:
        header_bytes: JSON header.
        payload_bytes: Tensors.
        by_kind: Other limits on the tensors of some kinds of frame.
    """

    header_bytes: int = MAX_HEADER_BYTES
    payload_bytes: int = MAX_PAYLOAD_BYTES
    by_kind: Mapping[Kind, int] = field(default_factory=dict)


STRANGER = Limits(header_bytes=4096, payload_bytes=0)
"""What somebody may send before proving that they belong to the run."""


@dataclass(frozen=True, kw_only=True)
class Frame:
    """A message.

    Attributes:
        kind: What it is.
        header: JSON values; never holds ``tensors``, which the codec adds.
        tensors: One-dimensional or shaped, contiguous, on the CPU.
    """

    kind: Kind
    header: dict[str, Any] = field(default_factory=dict)
    tensors: Sequence[torch.Tensor] = ()


def whole(header: dict[str, Any], key: str, high: int = MAX_STEP) -> int:
    """A whole number from 0 to ``high`` in a header.

    Raises:
        ProtocolError: It is missing or something else.
    """
    value = header.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= high:
        raise ProtocolError(f"field '{key}' is {str(value)[:40]!r}, a number to {high} is needed")
    return value


def text(header: dict[str, Any], key: str) -> str:
    """A string in a header.

    Raises:
        ProtocolError: It is missing or something else.
    """
    value = header.get(key)
    if not isinstance(value, str):
        raise ProtocolError(f"field '{key}' is {str(value)[:40]!r}, a text is needed")
    return value


def raw(tensor: torch.Tensor) -> memoryview:
    """The bytes of a contiguous CPU tensor, not copied."""
    if tensor.numel() == 0:
        return memoryview(b"")
    array: Any = tensor.detach().reshape(-1).view(torch.uint8).numpy()
    return memoryview(array)


def encode(frame: Frame) -> tuple[bytes, list[memoryview]]:
    """Prefix with header, and the payload in pieces.

    Raises:
        EnvironmentUnableError: This host is big-endian.
        ProtocolError: A tensor's type cannot be sent.
    """
    if sys.byteorder != "little":
        raise EnvironmentUnableError("the parameter server needs little-endian hosts")
    specs = []
    for tensor in frame.tensors:
        if tensor.dtype not in _NAMES:
            raise ProtocolError(f"tensors of {tensor.dtype} cannot be sent")
        specs.append([_NAMES[tensor.dtype], list(tensor.shape)])
    body = {**frame.header, "tensors": specs} if specs else frame.header
    header = json.dumps(body, separators=(",", ":"), allow_nan=False).encode()
    views = [raw(t) for t in frame.tensors]
    size = sum(len(v) for v in views)
    prefix = PREFIX.pack(MAGIC, VERSION, frame.kind, 0, len(header), size)
    return prefix + header, views


def decode_prefix(data: bytes | memoryview, limits: Limits) -> tuple[Kind, int, int]:
    """Kind, header length and payload length.

    Raises:
        ProtocolError: Wrong magic, version or kind, or a length over the limits.
    """
    magic, version, kind, reserved, header, payload = PREFIX.unpack(data)
    if magic != MAGIC or reserved:
        raise ProtocolError(f"a frame began with {magic!r} instead of {MAGIC!r}")
    if version != VERSION:
        raise ProtocolError(f"protocol version {version}, this side speaks {VERSION}")
    if kind not in Kind._value2member_map_:
        raise ProtocolError(f"unknown kind of frame {kind}")
    most = limits.by_kind.get(Kind(kind), limits.payload_bytes)
    if header > limits.header_bytes or payload > most:
        raise ProtocolError(
            f"a {Kind(kind).name} frame of {header} + {payload} bytes is over the limit of "
            f"{limits.header_bytes} + {most}"
        )
    if not header:
        raise ProtocolError("a frame has no header")
    return Kind(kind), header, payload


def decode_header(data: bytes | memoryview, payload_bytes: int) -> dict[str, Any]:
    """The header; its tensors add up to the payload.

    Raises:
        ProtocolError: Not one JSON object, or tensors that do not fit the payload.
    """
    try:
        header = json.loads(bytes(data), parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"a header is not JSON: {error}") from error
    if not isinstance(header, dict):
        raise ProtocolError(f"a header is a {type(header).__name__}, an object is needed")
    specs = _specs(header)
    size = sum(dtype.itemsize * math.prod(shape) for dtype, shape in specs)
    if size != payload_bytes:
        raise ProtocolError(f"a header lists {size} bytes of tensors, {payload_bytes} came")
    return header


def decode_tensors(header: dict[str, Any], payload: torch.Tensor) -> list[torch.Tensor]:
    """Tensors over the payload's own memory.

    Args:
        header: From :func:`decode_header`; loses its ``tensors``.
        payload: All of it, uint8.
    """
    tensors, offset = [], 0
    for dtype, shape in _specs(header):
        size = math.prod(shape) * dtype.itemsize
        part = payload[offset : offset + size]
        if offset % dtype.itemsize:
            part = part.clone()  # a view needs an aligned start
        tensors.append(part.view(dtype).view(shape))
        offset += size
    header.pop("tensors", None)
    return tensors


def _specs(header: dict[str, Any]) -> list[tuple[torch.dtype, list[int]]]:
    rows = header.get("tensors", [])
    if not isinstance(rows, list) or len(rows) > MAX_TENSORS:
        raise ProtocolError("field 'tensors' is no list, or too long")
    return [_spec(row) for row in rows]


def _spec(row: Any) -> tuple[torch.dtype, list[int]]:
    if not isinstance(row, list) or len(row) != 2 or not isinstance(row[0], str):
        raise ProtocolError(f"a tensor is described by {str(row)[:40]!r}")
    name, shape = row
    dtype = DTYPES.get(name)
    if dtype is None:
        raise ProtocolError(f"tensors of '{name[:20]}' are not accepted")
    if not isinstance(shape, list) or len(shape) > MAX_DIMENSIONS:
        raise ProtocolError(f"a tensor has the shape {str(shape)[:40]}")
    sizes = [whole({"size": size}, "size") for size in shape]
    if math.prod(max(size, 1) for size in sizes) > MAX_PAYLOAD_BYTES:
        raise ProtocolError(f"a tensor of shape {sizes} is too large")
    return dtype, sizes


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not allowed")
