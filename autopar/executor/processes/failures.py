"""How a failure in a rank becomes one clear line in the launcher."""

from __future__ import annotations

import json
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autopar.core import errors
from autopar.core.errors import AutoparError, EnvironmentUnableError, InputError, TrainingError
from autopar.core.io import write_text_atomic

_LOST_PEER = (
    "connection closed by peer",
    "connection reset",
    "connection refused",
    "broken pipe",
    "timed out waiting",
    "connection was likely closed",
    "nccl communicator was aborted",
)


@dataclass(frozen=True, kw_only=True)
class Failure:
    """What one rank reported before it ended.

    Attributes:
        rank: Global rank.
        time_s: Wall clock.
        kind: Exception class name.
        message: First line of its text.
        hint: Next step, if the exception had one.
        code: Code of an :class:`AutoparError`, ``None`` for others.
    """

    rank: int
    time_s: float
    kind: str
    message: str
    hint: str | None
    code: str | None

    @property
    def secondary(self) -> bool:
        """True when the rank only noticed that another one was gone."""
        return self.code is None and any(mark in self.message.lower() for mark in _LOST_PEER)


def log_path(out: Path, rank: int) -> Path:
    """Where a rank's output goes."""
    return out / "logs" / f"rank-{rank}.log"


def report_failure(out: Path, rank: int, error: BaseException) -> None:
    """Leave a note for the launcher; the traceback goes to the rank's log (stderr)."""
    traceback.print_exception(error)
    own = isinstance(error, AutoparError)
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    note = {
        "rank": rank,
        "time_s": time.time(),
        "kind": type(error).__name__,
        "message": lines[0] if lines else "(no message)",
        "hint": error.hint if isinstance(error, AutoparError) else None,
        "code": error.code if own and isinstance(error, AutoparError) else None,
    }
    write_text_atomic(out / "errors" / f"rank-{rank}.json", json.dumps(note))


def read_failures(out: Path, since_s: float = 0.0) -> list[Failure]:
    """Notes of all ranks written after a wall-clock time, earliest first."""
    notes = []
    for path in sorted((out / "errors").glob("rank-*.json")):
        data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        notes.append(Failure(**data))
    return sorted((n for n in notes if n.time_s >= since_s), key=lambda note: note.time_s)


def diagnose(
    out: Path, world_size: int, exits: dict[int, int], *, since_s: float = 0.0
) -> AutoparError:
    """The error to raise for a run that did not finish.

    The first rank that failed by itself is named. A rank that ended without a note was killed
    from outside; it is the cause when all others only lost their connection.

    Args:
        out: Run folder.
        world_size: Number of ranks.
        exits: Exit status of ranks, as far as known; negative for a signal.
        since_s: Start of the run; older notes are another run's.
    """
    failures = read_failures(out, since_s)
    primary = next((f for f in failures if not f.secondary), None)
    silent = sorted(set(range(world_size)) - {f.rank for f in failures})
    killed = [rank for rank in silent if exits.get(rank, 0) < 0 or (failures and not primary)]
    if primary is None and killed:
        rank = killed[0]
        if any("timed out" in f.message.lower() for f in failures):
            return TrainingError(
                f"rank {rank} stopped answering, the other ranks gave up waiting; "
                f"log: {log_path(out, rank)}",
                hint="it hangs or is very slow; allow more with timeout_s if it is only slow",
            )
        status = exits.get(rank, 0)
        how = f"was killed by signal {-status}" if status < 0 else "ended without an error message"
        return TrainingError(
            f"rank {rank} {how}; log: {log_path(out, rank)}",
            hint="signal 9 is often the kernel's out-of-memory killer; compare the plan's peak "
            "memory with the free memory",
        )
    primary = primary or (failures[0] if failures else None)
    if primary is None:
        return TrainingError(
            f"the run ended before any rank reported; launcher log: {out / 'logs'}",
            hint="read the logs",
        )
    return _as_error(primary, out)


def _as_error(failure: Failure, out: Path) -> AutoparError:
    """Our own errors keep their class and text; others become a TrainingError."""
    kind = getattr(errors, failure.kind, None)
    if failure.code is not None and isinstance(kind, type) and issubclass(kind, AutoparError):
        rebuilt: AutoparError = kind(failure.message, hint=failure.hint)
        if isinstance(rebuilt, InputError | EnvironmentUnableError):
            return rebuilt
        return TrainingError(
            f"{failure.message}; log: {log_path(out, failure.rank)}", hint=failure.hint
        )
    return TrainingError(
        f"rank {failure.rank} failed first: {failure.kind}: {failure.message}; "
        f"log: {log_path(out, failure.rank)}",
        hint=failure.hint or "the log has the traceback",
    )
