"""RunOptions: how a plan is run, as opposed to what the plan is."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from autopar.core.errors import InputError
from autopar.core.registry import did_you_mean
from autopar.executor.sampling.registry import SAMPLERS
from autopar.executor.server.options import PATH_FIELDS as SERVER_PATH_FIELDS
from autopar.executor.server.options import ServerOptions
from autopar.plans.checks import DATA_SPLITS

LAUNCHERS = ("torchrun", "fork")
PATH_FIELDS = ("out", "checkpoint_dir", "resume")


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Options of one run.

    Attributes:
        steps: Measured steps, >= 1.
        warmup: Steps before them; they train too, only their times are kept apart.
        verify: Compare one step with one process before training.
        tolerance: Largest relative difference ``verify`` accepts; by the plan's precision if not
            given.
        out: Run folder: record, logs, progress, checkpoints. Made if missing.
        data_split: Overrides ``plan.data_split``.
        sampler: Overrides ``task.sampler``.
        clip_norm: Overrides ``plan.clip_norm``.
        checkpoint_every: Save after every so many steps, 0 for never.
        checkpoint_dir: Where to save, ``out/checkpoints`` by default.
        resume: Folder to continue from: one that holds ``latest``, or one ``step-N``.
        launcher: ``torchrun``, or ``fork`` for tasks that exist only in this process.
        nnodes: Hosts; start the same command on each.
        node_rank: Which of them this is.
        rdzv_endpoint: ``host:port`` of the first host, needed with several hosts.
        node_size: Ranks that count as one node of hierarchical averaging; those of this host by
            default.
        local_ranks: Ranks on this host, an equal share of the plan's by default.
        device: ``cpu`` or ``cuda``; ``auto`` takes CUDA where every local rank can have one.
        timeout_s: How long a collective may take before the run is given up.
        quiet: Show no progress.
        servers: Options of parameter servers, for plans that have them.

    Raises:
        InputError: A value is out of range or contradicts another.
    """

    out: Path
    steps: int = 20
    warmup: int = 3
    verify: bool = False
    tolerance: float | None = None
    data_split: str | None = None
    sampler: str | None = None
    clip_norm: float | None = None
    checkpoint_every: int = 0
    checkpoint_dir: Path | None = None
    resume: Path | None = None
    launcher: Literal["torchrun", "fork"] = "torchrun"
    nnodes: int = 1
    node_rank: int = 0
    rdzv_endpoint: str | None = None
    node_size: int | None = None
    local_ranks: int | None = None
    device: Literal["auto", "cpu", "cuda"] = "auto"
    timeout_s: float = 300.0
    quiet: bool = False
    servers: ServerOptions = field(default_factory=ServerOptions)

    def __post_init__(self) -> None:
        for key in PATH_FIELDS:
            value = getattr(self, key)
            if value is not None:
                object.__setattr__(self, key, Path(value).expanduser().absolute())
        _check_numbers(self)
        _check_choices(self)
        if self.nnodes > 1 and not self.rdzv_endpoint:
            raise InputError(
                f"{self.nnodes} hosts need a meeting point",
                hint="pass --rdzv-endpoint HOST:PORT of the first host on every host",
            )
        if self.nnodes > 1 and self.launcher == "fork":
            raise InputError(
                "launcher 'fork' starts ranks on one host only", hint="use launcher 'torchrun'"
            )

    @property
    def checkpoints(self) -> Path:
        """Folder that checkpoints go to."""
        return self.checkpoint_dir or self.out / "checkpoints"

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        data = asdict(self)
        for key in PATH_FIELDS:
            data[key] = None if data[key] is None else str(data[key])
        for key in SERVER_PATH_FIELDS:
            value = data["servers"][key]
            data["servers"][key] = None if value is None else str(value)
        return data

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> RunOptions:
        """Inverse of :meth:`to_dict`."""
        known = {f.name: data[f.name] for f in fields(cls) if f.name in data}
        if isinstance(known.get("servers"), dict):
            known["servers"] = ServerOptions(**known["servers"])
        return cls(**known)


def _check_numbers(options: RunOptions) -> None:
    whole = {"steps": 1, "warmup": 0, "checkpoint_every": 0, "nnodes": 1, "node_rank": 0}
    for key, low in whole.items():
        value = getattr(options, key)
        if isinstance(value, bool) or not isinstance(value, int) or value < low:
            raise InputError(
                f"run option {key}={value!r} must be a whole number >= {low}",
                hint=f"set {key} to {low} or more",
            )
    for key in ("tolerance", "timeout_s"):
        value = getattr(options, key)
        if value is not None and not value > 0:
            raise InputError(f"run option {key}={getattr(options, key)!r} must be positive")
    if options.node_size is not None and options.node_size < 1:
        raise InputError(f"run option node_size={options.node_size!r} must be 1 or more")
    if options.clip_norm is not None and not options.clip_norm > 0:
        raise InputError(f"run option clip_norm={options.clip_norm!r} must be positive")
    if options.node_rank >= options.nnodes:
        raise InputError(
            f"node_rank={options.node_rank} with nnodes={options.nnodes}",
            hint=f"hosts are numbered 0 to {options.nnodes - 1}",
        )


def _check_choices(options: RunOptions) -> None:
    if options.sampler is not None and options.sampler not in SAMPLERS:
        raise InputError(
            f"unknown sampler '{options.sampler}'",
            hint=did_you_mean(options.sampler, list(SAMPLERS)),
        )
    if options.data_split is not None and options.data_split not in DATA_SPLITS:
        raise InputError(
            f"unknown data split '{options.data_split}'",
            hint=did_you_mean(options.data_split, list(DATA_SPLITS)),
        )
    if options.launcher not in LAUNCHERS:
        raise InputError(
            f"unknown launcher '{options.launcher}'",
            hint=did_you_mean(options.launcher, list(LAUNCHERS)),
        )
    if options.device not in ("auto", "cpu", "cuda"):
        raise InputError(f"unknown device '{options.device}'", hint="use auto, cpu or cuda")
