"""The progress of a run: rank 0 writes JSON lines, the launcher shows them on stderr."""

from __future__ import annotations

import json
import sys
import threading
import time
from pathlib import Path
from typing import Any, TextIO

FILE_NAME = "progress.jsonl"
_SHORTEST_GAP_S = 0.1
_POLL_S = 0.1


class ProgressWriter:
    """Writes what happens, at most ten lines a second apart from phases and the last step.

    Args:
        path: File to append to, ``None`` to write nothing (ranks other than 0).
    """

    def __init__(self, path: Path | None) -> None:
        self._stream: TextIO | None = path.open("a", encoding="utf-8") if path else None
        self._written_at = 0.0

    def phase(self, text: str) -> None:
        """A new phase, e.g. ``building``."""
        self._write({"phase": text})

    def step(self, *, step: int, of: int, loss: float, step_time_s: float) -> None:
        """A finished step."""
        now = time.monotonic()
        if step == of or now - self._written_at >= _SHORTEST_GAP_S:
            self._written_at = now
            self._write({"step": step, "of": of, "loss": loss, "step_time_s": step_time_s})

    def _write(self, data: dict[str, Any]) -> None:
        if self._stream is not None:
            self._stream.write(json.dumps(data) + "\n")
            self._stream.flush()


class ProgressView:
    """Follows the file in a thread and shows the newest line.

    On a terminal one line is rewritten; elsewhere phases are printed and steps at most every
    five seconds, so that logs stay short.

    Args:
        path: The file rank 0 writes.
        predicted_s: Step time the planner expects, if it said one.
        stream: Where to show, stderr by default.
    """

    def __init__(
        self, path: Path, predicted_s: float | None, stream: TextIO | None = None
    ) -> None:
        self._path = path
        self._predicted_s = predicted_s
        self._out = stream or sys.stderr
        self._terminal = self._out.isatty()
        self._stop = threading.Event()
        self._shown_at = 0.0
        self._dirty = False
        self._thread = threading.Thread(target=self._follow, daemon=True)

    def __enter__(self) -> ProgressView:
        """Start following."""
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        """Show what is left and stop."""
        self._stop.set()
        self._thread.join()
        if self._dirty:
            self._out.write("\n")

    def _follow(self) -> None:
        place = 0
        while True:
            last = self._stop.is_set()
            if self._path.exists():
                with self._path.open(encoding="utf-8") as stream:
                    stream.seek(place)
                    lines = [line for line in stream.readlines() if line.endswith("\n")]
                place += sum(len(line.encode()) for line in lines)
                self._show([json.loads(line) for line in lines])
            if last:
                return
            self._stop.wait(_POLL_S)

    def _show(self, rows: list[dict[str, Any]]) -> None:
        for i, row in enumerate(rows):
            final = row.get("step") == row.get("of") and "step" in row
            if self._terminal and i == len(rows) - 1:
                self._out.write("\r\x1b[K" + self.text(row))
                self._dirty = True
            elif not self._terminal and (
                "phase" in row or final or time.monotonic() - self._shown_at > 5.0
            ):
                self._shown_at = time.monotonic()
                self._out.write(self.text(row) + "\n")
        self._out.flush()

    def text(self, row: dict[str, Any]) -> str:
        """One line, e.g. ``step 12/50  loss 2.31  41.2 ms (predicted 39.8)``."""
        if "phase" in row:
            return f"{row['phase']} ..."
        line = f"step {row['step']}/{row['of']}  loss {row['loss']:.4g}"
        line += f"  {row['step_time_s'] * 1e3:.4g} ms"
        if self._predicted_s is not None:
            line += f" (predicted {self._predicted_s * 1e3:.4g})"
        return line
