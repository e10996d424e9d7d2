"""profile(): trace a task, count its costs, time its blocks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from autopar.api.clusters import Progress
from autopar.api.places import PROFILES, profile_path
from autopar.core.errors import InputError
from autopar.graph import GraphProfile
from autopar.tasks import Task


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredProfile:
    """A profile and where it is.

    Attributes:
        profile: The profile.
        path: Its file.
        from_cache: True when nothing had to be measured again.
        warnings: What was skipped.
    """

    profile: GraphProfile
    path: Path
    from_cache: bool
    warnings: tuple[str, ...] = ()


def load_task(task: Task | str) -> Task:
    """A task from a value or a target string.

    Raises:
        InputError: The target does not resolve.
    """
    if isinstance(task, Task):
        return task
    from autopar.tasks.resolve import resolve

    return resolve(task)


def profile(
    task: Task | str,
    *,
    batch: int | None = None,
    device: str = "cpu",
    measure: bool = True,
    busy_ranks: int | None = None,
    out: Path | str | None = None,
    progress: Progress | None = None,
) -> GraphProfile:
    """Trace a task and measure (or price) its ops.

    Args:
        task: A task or target string.
        batch: Samples in the traced batch, also the largest microbatch measured; 8 by default.
        device: ``cpu`` or ``cuda`` to measure here, or a catalogue device or machine name to
            price the graph without hardware.
        measure: False to count only.
        busy_ranks: Processes that compute at the same time while measuring.
        out: File to write; under ``profiles/`` by default.
        progress: ``progress(stage, done, total)``.

    Raises:
        TraceError: torch.export cannot capture the task.
        InputError: A name or number is wrong.
    """
    return profile_stored(
        task,
        batch=batch,
        device=device,
        measure=measure,
        busy_ranks=busy_ranks,
        out=out,
        progress=progress,
    ).profile


def profile_stored(
    task: Task | str,
    *,
    batch: int | None = None,
    device: str = "cpu",
    measure: bool = True,
    busy_ranks: int | None = None,
    out: Path | str | None = None,
    progress: Progress | None = None,
) -> StoredProfile:
    """:func:`profile`, with the file it was written to and whether the cache was used."""
    if batch is not None and batch < 1:
        raise InputError(f"batch is {batch}, it must be at least 1", hint="use --batch 8")
    device = check_device(device)
    from autopar.profiler import profile_task

    loaded = load_task(task)
    outcome = profile_task(
        loaded,
        batch=batch,
        device=device,
        measure=measure,
        busy_ranks=busy_ranks,
        cache_dir=PROFILES / "cache",
        progress=progress,
    )
    found = outcome.profile
    path = (
        Path(out)
        if out is not None
        else profile_path(loaded.name, loaded.target, found.batch, device)
    )
    found.save(path)
    return StoredProfile(
        profile=found,
        path=path,
        from_cache=outcome.from_cache,
        warnings=tuple(outcome.warnings),
    )


def check_device(device: str) -> str:
    """``cpu``, ``cuda`` or a catalogue name.

    Raises:
        InputError: Unknown name; the hint has the closest ones.
    """
    if device in ("cpu", "cuda"):
        return device
    from autopar.cluster.catalog import load_machine

    load_machine(device)
    return device
