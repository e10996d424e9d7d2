"""profile_task(): trace, count, cut into blocks, measure; with a cache."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from autopar.core.errors import EnvironmentUnableError, InputError, TraceError
from autopar.core.host_watch import HostWatch, disturbed, quiet_again
from autopar.core.io import content_hash
from autopar.core.provenance import provenance
from autopar.core.version import __version__
from autopar.graph import GraphProfile
from autopar.profiler.counting.blocks import build_blocks, named_parameters
from autopar.profiler.counting.dataflow import CountedGraph, Progress, count
from autopar.profiler.optimizer import make_optimizer, optimizer_state
from autopar.profiler.timing.host_load import Load, host_load
from autopar.profiler.timing.points import PointStore
from autopar.profiler.timing.policy import MeasurePolicy
from autopar.profiler.timing.task import measure
from autopar.tasks import Task
from autopar.trace import TracedTask, build_model, trace

DEFAULT_BATCH = 8
MEASURABLE = ("cpu", "cuda")


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfileOutcome:
    """A profile and how it came about.

    Attributes:
        profile: The profile.
        from_cache: True when the stored profile was used and nothing was measured.
        warnings: What was skipped or assumed.
    """

    profile: GraphProfile
    from_cache: bool
    warnings: tuple[str, ...] = ()


def profile_task(
    task: Task,
    *,
    batch: int | None = None,
    device: str = "cpu",
    measure: bool = True,
    busy_ranks: int | None = None,
    cache_dir: Path | None = None,
    progress: Progress | None = None,
    policy: MeasurePolicy | None = None,
) -> ProfileOutcome:
    """Trace a task and find what its ops cost.

    Args:
        task: The task.
        batch: Samples in the traced batch and largest measured microbatch, 8 by default.
        device: ``cpu`` or ``cuda`` to measure on this host; any other name prices the same graph
            from the catalogue later, without measuring.
        measure: False to count only.
        busy_ranks: Processes that compute at the same time while measuring; one per core by
            default, at most eight (one on a GPU).
        cache_dir: Folder of the cache, ``~/.cache/autopar/profiles`` by default.
        progress: Called with ``(stage, done, total)``.
        policy: How to time.

    Raises:
        TraceError: torch.export cannot capture the task.
        InputError: A factory of the task or a number is wrong.
        EnvironmentUnableError: ``device="cuda"`` without a GPU.
    """
    _check(batch, busy_ranks, device)
    policy = policy or MeasurePolicy()
    tell = progress or (lambda stage, done, total: None)
    warnings: list[str] = []
    load = host_load(device, busy_ranks) if measure and device in MEASURABLE else None
    tell("trace", 0, 1)
    model, traced = _trace(task, batch or DEFAULT_BATCH, warnings)
    tell("trace", 1, 1)
    graph = count(traced, progress)
    profile = _counted(task, model, traced, graph, device)
    cache = _Cache(cache_dir or default_cache_dir(), _key(profile, task, load, policy))
    stored = cache.load(warnings)
    if stored is not None and quiet_again(stored.others_share):
        cache.points.unlink(missing_ok=True)
    elif stored is not None:
        kept = tuple(str(w) for w in stored.provenance.get("warnings", ()))
        named = replace(stored, task=task.name, target=task.target)
        return ProfileOutcome(profile=named, from_cache=True, warnings=(*warnings, *kept))
    if load is not None:
        profile = _measured(profile, traced, graph, load, policy, cache, warnings, progress)
    profile = replace(profile, provenance={**profile.provenance, "warnings": warnings})
    if not any("stopped after" in warning for warning in warnings):
        cache.save(profile, warnings)
    return ProfileOutcome(profile=profile, from_cache=False, warnings=tuple(warnings))


def default_cache_dir() -> Path:
    """``$XDG_CACHE_HOME/autopar/profiles``, or the same under ``~/.cache``."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "autopar" / "profiles"


def _check(batch: int | None, busy_ranks: int | None, device: str) -> None:
    for name, value in (("batch", batch), ("busy_ranks", busy_ranks)):
        if value is not None and value < 1:
            raise InputError(f"{name} is {value}, it must be at least 1", hint=f"raise {name}")
    if device == "cuda" and not torch.cuda.is_available():
        raise EnvironmentUnableError(
            "device 'cuda' was asked for, but torch sees no GPU",
            hint="use --device cpu, or a catalogue name to price the graph without hardware",
        )


def _trace(task: Task, batch: int, warnings: list[str]) -> tuple[torch.nn.Module, TracedTask]:
    """Trace without weights; with real ones when the model cannot do without."""
    try:
        model = build_model(task, device="meta")
        return model, trace(task, batch, device="meta", model=model)
    except (TraceError, InputError) as error:
        reason = error
    try:
        model = build_model(task, device="cpu")
        traced = trace(task, batch, device="cpu", model=model)
    except (MemoryError, RuntimeError) as error:
        raise reason from error
    warnings.append(f"traced with real weights, as the model cannot be built without: {reason}")
    return model, traced


def count_task(traced: TracedTask, *, cut: bool = False) -> GraphProfile:
    """A counted profile of a traced task: what strategies look at, without blocks.

    Args:
        traced: The task; its ops have the indices of the profile's.
        cut: Cut it into blocks too, as a search needs it.
    """
    graph = count(traced)
    parameters = named_parameters(traced)
    profile = _uncut(traced.task, traced.module, parameters, traced, graph, "cpu")
    if not cut:
        return profile
    blocks, block_edges = build_blocks(traced, graph)
    return replace(profile, blocks=blocks, block_edges=block_edges)


def _counted(
    task: Task, model: torch.nn.Module, traced: TracedTask, graph: CountedGraph, device: str
) -> GraphProfile:
    blocks, block_edges = build_blocks(traced, graph)
    profile = _uncut(task, model, dict(model.named_parameters()), traced, graph, device)
    return replace(profile, blocks=blocks, block_edges=block_edges)


def _uncut(
    task: Task,
    model: torch.nn.Module,
    parameters: dict[str, torch.nn.Parameter],
    traced: TracedTask,
    graph: CountedGraph,
    device: str,
) -> GraphProfile:
    batch = traced.batch
    leaves = [n.meta["val"] for n in traced.module.graph.nodes if n.op == "placeholder"]
    return GraphProfile(
        task=task.name,
        target=task.target,
        fingerprint=traced.fingerprint,
        batch=batch,
        device=device,
        parameters={
            name: (p.numel(), p.numel() * p.element_size()) for name, p in parameters.items()
        },
        buffer_bytes=float(sum(b.numel() * b.element_size() for b in model.buffers())),
        input_bytes=sum(t.numel() * t.element_size() for t in leaves) / batch,
        ops=graph.ops,
        edges=graph.edges,
        blocks=(),
        block_edges=(),
        optimizer=optimizer_state(task),
        uncounted=graph.uncounted,
        smallest_microbatch=_smallest_microbatch(traced),
        provenance={**provenance(), **_explanation(graph, batch)},
    )


def _smallest_microbatch(traced: TracedTask) -> int:
    """2 when a BatchNorm sees a single value per sample and channel, as it needs two; else 1."""
    for node in traced.nodes:
        source = node.args[0] if node.args else None
        if "batch_norm" not in str(node.target) or not isinstance(source, torch.fx.Node):
            continue
        value = source.meta["val"]
        if value.numel() // (value.shape[0] * value.shape[1]) == 1:
            return 2
    return 1


def _explanation(graph: CountedGraph, batch: int) -> dict[str, Any]:
    """How the counts relate to those of torch's own counter."""
    ours = sum(op.forward_flop.at(batch) + op.backward_flop.at(batch) for op in graph.ops)
    return {
        "flop_counter_mode": {
            "batch": batch,
            "flop": graph.stock_flop,
            "autopar_flop": ours,
            "differences": graph.corrections,
        }
    }


def _measured(
    profile: GraphProfile,
    traced: TracedTask,
    graph: CountedGraph,
    load: Load,
    policy: MeasurePolicy,
    cache: _Cache,
    warnings: list[str],
    progress: Progress | None,
) -> GraphProfile:
    store = PointStore(cache.points)
    watch = HostWatch()
    found, said, _ = measure(
        traced,
        graph,
        profile.blocks,
        smallest=min(profile.smallest_microbatch, profile.batch),
        load=load,
        policy=policy,
        store=store,
        progress=progress,
    )
    others = watch.others()
    warnings += [*store.warnings, *said]
    warnings += [text for text in (disturbed("the profile", others),) if text]
    body = {
        **profile.provenance,
        "measure_policy": asdict(policy),
        "others_share": others,
    }
    return replace(profile, measurement=found, provenance=body)


def _key(profile: GraphProfile, task: Task, load: Load | None, policy: MeasurePolicy) -> str:
    """Hash of everything a stored profile depends on."""
    placeholder = make_optimizer(task, [torch.nn.Parameter(torch.zeros(1))])
    return content_hash(
        {
            "autopar": __version__,
            "torch": torch.__version__,
            "target": task.target,
            "task": task.name,
            "fingerprint": profile.fingerprint,
            "blocks": [[b.signature, b.first_op, b.stop_op] for b in profile.blocks],
            "parameters": {name: list(pair) for name, pair in profile.parameters.items()},
            "batch": profile.batch,
            "device": profile.device,
            "load": asdict(load) if load is not None else None,
            "policy": asdict(policy),
            "optimizer": [type(placeholder).__name__, repr(sorted(placeholder.defaults.items()))],
        }
    )


@dataclass(frozen=True, slots=True)
class _Cache:
    """Stored profile and finished points of one key."""

    folder: Path
    key: str

    @property
    def file(self) -> Path:
        """The complete profile."""
        return self.folder / f"profile-{self.key}.json"

    @property
    def points(self) -> Path:
        """The points timed so far."""
        return self.folder / f"points-{self.key}.json"

    def load(self, warnings: list[str]) -> GraphProfile | None:
        """The stored profile, if there is a sound one."""
        if not self.file.exists():
            return None
        try:
            return GraphProfile.load(self.file)
        except InputError as error:
            warnings.append(f"ignored the damaged cache file {self.file.name}: {error}")
            return None

    def save(self, profile: GraphProfile, warnings: list[str]) -> None:
        """Keep a complete profile; a cache that cannot be written is only a warning."""
        try:
            profile.save(self.file)
        except InputError as error:
            warnings.append(f"the profile is not cached: {error}")
