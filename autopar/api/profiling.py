"""profile(): trace a task, count its costs, time its blocks."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from autopar.api.clusters import Progress
from autopar.api.places import PROFILES, profile_path
from autopar.core.errors import InputError
from autopar.graph import GradientNoise, GraphProfile
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
    noise_steps: int | None = None,
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
        noise_steps: Also measure the gradient noise scale along so many steps of training with
            real weights; a stored one of the same task is kept.
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
        noise_steps=noise_steps,
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
    noise_steps: int | None = None,
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
    found = replace(found, gradient_noise=_noise(loaded, found, path, noise_steps, progress))
    found.save(path)
    return StoredProfile(
        profile=found,
        path=path,
        from_cache=outcome.from_cache,
        warnings=tuple(outcome.warnings),
    )


def _noise(
    task: Task,
    profile: GraphProfile,
    path: Path,
    steps: int | None,
    progress: Progress | None,
) -> GradientNoise | None:
    """The noise scale measured now, or the one in the file that is about to be replaced."""
    if steps is not None:
        if profile.device not in ("cpu", "cuda"):
            raise InputError(
                f"the noise scale needs real training, device '{profile.device}' is not here",
                hint="use --device cpu or cuda",
            )
        from autopar.profiler.noise_scale import measure_noise_scale

        return measure_noise_scale(
            task, steps=steps, batch=profile.batch, device=profile.device, progress=progress
        )
    try:
        known = GraphProfile.load(path)
    except InputError:  # none yet, or damaged: it is replaced anyway
        return None
    same = (known.fingerprint, known.target) == (profile.fingerprint, profile.target)
    return known.gradient_noise if same else None


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
