"""What the user asks of a search."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, get_args

from autopar.cluster import Cluster
from autopar.core.errors import InputError
from autopar.core.registry import did_you_mean
from autopar.cost.states import ITEM_BYTES, auto_precision
from autopar.graph import GraphProfile
from autopar.sync import COMPRESSIONS, SYNC_MODES, canonical_sync

Objective = Literal["time", "time-to-target", "memory", "energy", "cost"]
SPACES = ("auto", "full", "runnable")
PRECISIONS = ("auto", "float32", "tf32", "bfloat16", "float16", "float8")
OBJECTIVES: tuple[str, ...] = get_args(Objective)
EXACT_MODES = ("all_reduce",)
"""What ``exact`` stands for. The synchronous parameter server is exact too, but sends the same
bytes with more messages; it competes when it is named."""


@dataclass(frozen=True, kw_only=True)
class SearchOptions:
    """Constraints and preferences.

    Attributes:
        global_batch: Samples per step; ``None`` for the profiled batch on every device.
        objective: What to minimise; ``time-to-target`` equals ``time`` for exact sync modes.
        sync: ``exact``, ``any``, or mode names joined by commas.
        fix: Specifications (``"pp=2,tp=1"``) every plan must meet.
        forbid: Specifications no plan may meet; one with several axes forbids the combination.
        max_memory_bytes: Limit per device below its own memory.
        top: How many plans to return: the best one proved, then the next best points, each with
            its most promising stage boundaries (fewer when simulating more would take long).
        seed: Seed of the study and of the plans.
        storage: Optuna storage URL or ``journal:FILE``; in memory when ``None``.
        precision: Compute dtype; ``auto`` is bfloat16, else float16, with float32 master weights
            where every device has a peak for it, float32 elsewhere and on measured clusters.
        clip_norm: Gradient clipping of the plans.
        space: ``full``, ``runnable`` (what ``autopar run`` executes today), or ``auto``:
            runnable on a measured cluster, where a plan is there to be run, full elsewhere.

    Raises:
        InputError: A value is out of range or unknown.
    """

    global_batch: int | None = None
    objective: str = "time"
    sync: str = "exact"
    fix: tuple[str, ...] | Mapping[str, int | str] = ()
    forbid: tuple[str, ...] = ()
    max_memory_bytes: float | None = None
    top: int = 3
    seed: int = 0
    storage: str | None = None
    precision: str = "auto"
    clip_norm: float | None = None
    space: str = "auto"

    def __post_init__(self) -> None:
        if self.objective not in OBJECTIVES:
            raise InputError(
                f"unknown objective '{self.objective}'",
                hint=did_you_mean(self.objective, list(OBJECTIVES)),
            )
        for name in ("global_batch", "top"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or value < 1):
                flag = f"--{name.replace('_', '-')}"
                raise InputError(
                    f"{flag} is {value!r}, a whole number >= 1 is needed",
                    hint=f"write it like {flag} 8",
                )
        if self.max_memory_bytes is not None and not self.max_memory_bytes > 0:
            raise InputError(
                f"max_memory is {self.max_memory_bytes}", hint="give a positive size like 16GiB"
            )
        if self.space not in SPACES:
            raise InputError(
                f"unknown space '{self.space}'", hint=did_you_mean(self.space, list(SPACES))
            )
        if self.precision not in PRECISIONS and self.precision not in ITEM_BYTES:
            raise InputError(
                f"unknown precision '{self.precision}'",
                hint=did_you_mean(self.precision, list(PRECISIONS)),
            )
        self.sync_modes()

    def resolved(self, cluster: Cluster) -> SearchOptions:
        """The same with ``auto`` replaced by what it stands for on a cluster."""
        if self.precision != "auto":
            return self
        return replace(self, precision=auto_precision(cluster))

    def only_runnable(self, cluster: Cluster) -> bool:
        """True when plans that the executor cannot run are left out."""
        return self.space == "runnable" or (self.space == "auto" and cluster.measured)

    def sync_modes(self) -> tuple[str, ...]:
        """Modes that compete: the exact ones, those named, or with ``any`` all of them.

        Modes that change the mathematics compete on time to target only, unless they are named.

        Raises:
            InputError: A mode is unknown.
        """
        if self.sync == "any" and self.objective == "time-to-target":
            compressed = (f"all_reduce+{name}" for name in COMPRESSIONS if name != "none")
            return tuple(canonical_sync(text) for text in (*SYNC_MODES, *compressed))
        if self.sync in ("exact", "any"):
            return EXACT_MODES
        modes = tuple(filter(None, (mode.strip() for mode in self.sync.split(","))))
        if not modes:
            raise InputError("no sync mode is allowed", hint="use --sync exact")
        return tuple(dict.fromkeys(canonical_sync(mode) for mode in modes))

    def batch_for(self, profile: GraphProfile, devices: int) -> int:
        """The global batch: as given, else the profiled batch on every device."""
        return self.global_batch if self.global_batch is not None else profile.batch * devices
