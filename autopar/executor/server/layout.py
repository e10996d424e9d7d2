"""How the parameters are shared out over the servers.

The parameters lie one after the other in model order, ``E`` elements. Shard ``s`` of ``S`` is
meant to begin at element ``s E / S``. Inside a parameter of two or more dimensions it begins at
the next row (index of the first dimension), so that every piece keeps its number of dimensions:
an optimizer that treats matrices and vectors differently sees the same kinds as before. With
``by_parameter`` it begins at the parameter whose edge is nearest, for optimizers that look at
a parameter as a whole.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from autopar.executor.server.protocol import ProtocolError, text, whole

_MAX_PIECES = 65536


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One parameter.

    Attributes:
        name: Model name.
        shape: Its shape.
    """

    name: str
    shape: tuple[int, ...]

    @property
    def numel(self) -> int:
        """Elements."""
        return math.prod(self.shape)

    @property
    def row(self) -> int:
        """Elements that stay together: one index of the first dimension."""
        return math.prod(self.shape[1:]) if self.shape else 1


@dataclass(frozen=True, kw_only=True)
class Piece:
    """The part of a parameter that one server holds.

    Attributes:
        name: Model name of the parameter.
        start: First element of the parameter, flat.
        shape: Shape of the piece; only the first dimension may be shorter.
    """

    name: str
    start: int
    shape: tuple[int, ...]

    @property
    def numel(self) -> int:
        """Elements."""
        return math.prod(self.shape)

    def to_json(self) -> list[Any]:
        """Plain values."""
        return [self.name, self.start, list(self.shape)]


def piece_from_json(row: Any) -> Piece:
    """Inverse of :meth:`Piece.to_json`.

    Raises:
        ProtocolError: It is something else.
    """
    if not isinstance(row, list) or len(row) != 3 or not isinstance(row[2], list):
        raise ProtocolError(f"a piece is described by {str(row)[:60]!r}")
    fields = {"name": row[0], "start": row[1]}
    shape = tuple(whole({"size": size}, "size") for size in row[2])
    return Piece(name=text(fields, "name"), start=whole(fields, "start"), shape=shape)


def pieces_from_json(rows: Any) -> tuple[Piece, ...]:
    """A shard's pieces.

    Raises:
        ProtocolError: It is something else.
    """
    if not isinstance(rows, list) or len(rows) > _MAX_PIECES:
        raise ProtocolError("a shard needs a list of pieces")
    return tuple(piece_from_json(row) for row in rows)


def share_out(
    entries: Sequence[Entry], servers: int, *, by_parameter: bool = False
) -> list[tuple[Piece, ...]]:
    """The pieces of every server; a server may be left without any when there are few rows.

    Args:
        entries: Parameters in model order.
        servers: ``S``.
        by_parameter: Never cut a parameter.
    """
    total = sum(e.numel for e in entries)
    edges = [_edge(entries, s * total / servers, by_parameter) for s in range(servers)]
    edges.append(total)
    return [_between(entries, edges[s], edges[s + 1]) for s in range(servers)]


def _edge(entries: Sequence[Entry], wanted: float, by_parameter: bool) -> int:
    """The allowed place nearest to ``wanted``."""
    start = 0
    for entry in entries:
        stop = start + entry.numel
        if wanted <= start:
            return start
        if wanted < stop:
            if by_parameter:
                return start if wanted - start < stop - wanted else stop
            return min(start + round((wanted - start) / entry.row) * entry.row, stop)
        start = stop
    return start


def _between(entries: Sequence[Entry], first: int, last: int) -> tuple[Piece, ...]:
    pieces, start = [], 0
    for entry in entries:
        low, high = max(first, start), min(last, start + entry.numel)
        if low < high:
            rows = (high - low) // entry.row
            shape = (rows, *entry.shape[1:]) if entry.shape else ()
            pieces.append(Piece(name=entry.name, start=low - start, shape=shape))
        start += entry.numel
    return tuple(pieces)
