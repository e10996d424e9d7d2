"""The list of things to time, and the results that are already known."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from autopar.core.errors import InputError
from autopar.core.io import read_document, write_document
from autopar.profiler.timing.payload import Payload

_SCHEMA = "autopar.profile_points"
_VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """Something to time.

    Attributes:
        kind: ``block``, ``whole``, ``eager`` (the user's own module) or ``optimizer``.
        key: Block signature; the kind for the others.
        samples: Microbatch size.
        label: For people.
        flop: FLOPs of a forward and backward pass.
        payload: The ops; ``None`` for the optimizer and the user's own module.
        optimizer: Pickled optimizer; empty where none steps.
        shapes: Shapes and types of the parameters the optimizer steps.
        again: Computing the ops again is timed as well.
        optional: May be left out when time runs short.
    """

    kind: str
    key: str
    samples: int
    label: str
    flop: float = 0.0
    payload: Payload | None = None
    optimizer: bytes = b""
    shapes: tuple[tuple[tuple[int, ...], torch.dtype], ...] = ()
    again: bool = False
    optional: bool = False

    @property
    def name(self) -> str:
        """Where its result is stored."""
        return point_name(self.kind, self.key, self.samples)


def point_name(kind: str, key: str, samples: int) -> str:
    """Name of a point in the store."""
    return f"{kind}:{key}:{samples}"


@dataclass
class PointStore:
    """Results of finished points, kept in a file so that an interrupted profile resumes.

    Attributes:
        path: The file.
        results: Point name -> result row.
        warnings: What was wrong with the file, if anything.
    """

    path: Path
    results: dict[str, dict[str, Any]] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not self.path.exists():
            return
        try:
            body = read_document(self.path, _SCHEMA, _VERSION)
            self.results = {str(k): dict(v) for k, v in body["results"].items()}
        except (InputError, KeyError, TypeError, ValueError, AttributeError) as error:
            self.results = {}
            self.warnings.append(f"ignored the damaged cache file {self.path.name}: {error}")

    def put(self, name: str, row: dict[str, Any]) -> None:
        """Keep a result."""
        self.results[name] = row
        write_document(self.path, _SCHEMA, _VERSION, {"results": self.results})

    def value(self, kind: str, key: str, samples: int) -> dict[str, Any] | None:
        """The timings of a point, ``None`` when it was skipped, failed or is not known."""
        row = self.results.get(point_name(kind, key, samples))
        return None if row is None or "skipped" in row or "failed" in row else row
