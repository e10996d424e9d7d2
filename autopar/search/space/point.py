"""A point of the search space: all choices of a plan but its stage boundaries."""

from __future__ import annotations

from dataclasses import dataclass, fields

from autopar.plans import Mesh
from autopar.search.space.spec import Spec, Value
from autopar.strategies import Split


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One Optuna trial.

    Attributes:
        dp_replicate: Replicas.
        dp_shard: Ranks that share out states.
        zero: What they share out.
        cp: Context parallel ranks.
        tp: Tensor parallel ranks.
        sequence_parallel: ``on`` or ``off``.
        ep: Expert parallel ranks.
        pp: Pipeline ranks.
        schedule: Registered name.
        chunks: Stages per pipeline rank.
        microbatch_size: Samples.
        microbatches: Per replica and step.
        recompute: ``none``, ``selective``, ``full`` or ``mixed``.
        offload: ``on`` when optimizer state lives in host memory.
        sync: Sync mode and compression.
    """

    dp_replicate: int = 1
    dp_shard: int = 1
    zero: int = 0
    cp: int = 1
    tp: int = 1
    sequence_parallel: str = "off"
    ep: int = 1
    pp: int = 1
    schedule: str = "none"
    chunks: int = 1
    microbatch_size: int = 1
    microbatches: int = 1
    recompute: str = "none"
    offload: str = "off"
    sync: str = "all_reduce"

    @property
    def world(self) -> int:
        """Devices used."""
        return self.dp_replicate * self.dp_shard * self.cp * self.tp * self.pp

    @property
    def dp(self) -> int:
        """Ranks that see different samples."""
        return self.dp_replicate * self.dp_shard

    @property
    def stages(self) -> int:
        """Virtual stages."""
        return self.pp * self.chunks

    @property
    def mesh(self) -> Mesh:
        """Degrees."""
        return Mesh(
            dp_replicate=self.dp_replicate,
            dp_shard=self.dp_shard,
            cp=self.cp,
            tp=self.tp,
            pp=self.pp,
            ep=self.ep,
        )

    @property
    def split(self) -> Split:
        """How work inside a stage is divided."""
        return Split(
            tp=self.tp,
            sequence_parallel=self.sequence_parallel == "on",
            cp=self.cp,
            ep=self.ep,
        )

    def value(self, axis: str) -> Value:
        """Value on an axis."""
        result: Value = getattr(self, axis)
        return result

    def matches(self, spec: Spec) -> bool:
        """True when every axis of a specification has its value."""
        return all(self.value(axis) == value for axis, value in spec.items())

    def params(self) -> dict[str, Value]:
        """Axis -> value for the study."""
        return {name: getattr(self, name) for name in PARAMETERS}


PARAMETERS = tuple(field.name for field in fields(Point))
"""Axes of the study."""
