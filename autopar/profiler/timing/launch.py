"""Start busy ranks, follow their results, and never leave one behind."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from autopar.profiler.timing.points import Point
from autopar.profiler.timing.policy import MeasurePolicy

_POLL_S = 0.05
_WORKER = "autopar.profiler.timing.worker"


class BusyRanks:
    """Processes that time points in step.

    They import torch while the caller still prepares the points.

    Args:
        folder: Empty folder for the exchange of files.
        ranks: Number of processes.
        threads: Threads per process.
        device: ``cpu`` or ``cuda``.
        target: Target string of the task, if it has one; a rank traces it once to find the
            memory of a rank before the model exists.
        policy: How to time.
    """

    def __init__(
        self,
        folder: Path,
        *,
        ranks: int,
        threads: int,
        device: str,
        target: str | None,
        policy: MeasurePolicy,
    ) -> None:
        self._folder = folder
        self._policy = policy
        setup = {
            "ranks": ranks,
            "threads": threads,
            "device": device,
            "target": target,
            "policy": asdict(policy),
        }
        (folder / "setup.json").write_text(json.dumps(setup), encoding="utf-8")
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": str(threads),
            "MKL_NUM_THREADS": str(threads),
            "PYTHONPATH": os.pathsep.join(entry or os.getcwd() for entry in sys.path),
        }
        self._processes = [self._start(rank, environment) for rank in range(ranks)]

    def _start(self, rank: int, environment: dict[str, str]) -> subprocess.Popen[bytes]:
        with (self._folder / f"log{rank}").open("wb") as log:
            return subprocess.Popen(
                [sys.executable, "-m", _WORKER, str(self._folder), str(rank)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
            )

    def __enter__(self) -> BusyRanks:
        return self

    def __exit__(self, *exception: object) -> None:
        for process in self._processes:
            if process.poll() is None:
                process.kill()
        for process in self._processes:
            process.wait()

    def time(self, points: list[Point]) -> Iterator[dict[str, Any]]:
        """Hand out the points and yield result rows as they come.

        A row has ``point`` (its number) and timings, ``skipped`` or ``failed``; the first row has
        ``resident_bytes``, one at the end ``pace_s`` (:class:`~autopar.profiler.pace.Pace`). A
        last row ``{"broken": reason}`` says that a rank ended early.
        """
        for number, point in enumerate(points):
            (self._folder / f"{number:04}.pickle").write_bytes(pickle.dumps(point))
        ready = self._folder / "go.part"
        ready.write_text(json.dumps({"points": len(points)}), encoding="utf-8")
        ready.rename(self._folder / "go.json")
        yield from self._follow(self._folder / "results.jsonl", time.monotonic)

    def _follow(self, path: Path, clock: Callable[[], float]) -> Iterator[dict[str, Any]]:
        seen = 0
        deadline = clock() + self._policy.slack_s
        while True:
            ended = self._ended()
            lines = path.read_text(encoding="utf-8").splitlines(True) if path.exists() else []
            complete = [line for line in lines if line.endswith("\n")]
            for line in complete[seen:]:
                row = json.loads(line)
                if row.get("done"):
                    return
                deadline = clock() + self._policy.slack_s
                yield row
            if len(complete) == seen:
                if ended is not None:
                    yield {"broken": ended}
                    return
                if clock() > deadline:
                    yield {"broken": f"no result within {self._policy.slack_s:g} s"}
                    return
                time.sleep(_POLL_S)
            seen = len(complete)

    def _ended(self) -> str | None:
        """Why a rank ended, ``None`` while all run."""
        for rank, process in enumerate(self._processes):
            code = process.poll()
            if code is not None:
                words = (self._folder / f"log{rank}").read_text(errors="replace").split("\n")
                last = next((w for w in reversed(words) if w.strip()), "no message")
                cause = f"killed by signal {-code}" if code < 0 else f"exit code {code}"
                return f"rank {rank} ended ({cause}): {last.strip()[:200]}"
        return None
