"""The Plan value: mesh, stages, schedule, batch, sync mode; JSON and content hash."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from autopar.core.errors import InputError
from autopar.core.io import check_schema, content_hash, field_values, read_json, write_document
from autopar.plans.checks import check_plan
from autopar.plans.mesh import Mesh

SCHEMA = "autopar.plan"
SCHEMA_VERSION = 1
_NAMED_SHARES = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskRef:
    """Which task a plan is for.

    Attributes:
        name: Task name.
        target: Target string to resolve, ``None`` when the task was given as an object.
        fingerprint: Op-sequence hash of the traced model; a run refuses another one.
        op_count: Number of ops in that sequence.
    """

    name: str
    target: str | None
    fingerprint: str
    op_count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """A contiguous run of ops ``[first_op, stop_op)`` placed on one pipeline coordinate.

    Attributes:
        first_op: First op.
        stop_op: One past the last op.
        pp: Pipeline coordinate of the ranks that run it.
        recompute: Op ranges whose activations are dropped after forward and computed again
            before their backward, each as one unit.
        selective: Op ranges of which only cheap ops (attention scores, softmax, dropout,
            elementwise) are computed again; disjoint from ``recompute``.
        units: Op ranges whose weights ``dp_shard`` ranks gather and whose gradients they share
            out together; disjoint. Weights of ops outside of them, and weights that several units
            read, form one more unit. Empty: the stage is one unit.
        blocks: Names of the blocks in it, for people.
    """

    first_op: int
    stop_op: int
    pp: int
    recompute: tuple[tuple[int, int], ...] = ()
    selective: tuple[tuple[int, int], ...] = ()
    units: tuple[tuple[int, int], ...] = ()
    blocks: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How one optimizer step of a task is split over ranks and time.

    Attributes:
        task: The task and the graph it was traced to.
        mesh: Degrees of parallelism.
        stages: Virtual stages in order; they cover all ops. With an interleaved schedule a rank
            holds several.
        schedule: Registered schedule name (``none`` when pp is 1).
        microbatches: Microbatches per replica and step, >= 1.
        microbatch_size: Samples per microbatch, >= 1; the mean over replicas.
        batch_shares: Samples per microbatch of each replica, for replicas of different speed;
            their mean is ``microbatch_size``. Empty when all are equal.
        precision: Compute dtype; 16-bit and narrower ones keep float32 master weights.
        zero: What the ``dp_shard`` ranks share out: 0 nothing, 1 optimizer state, 2 gradients
            too, 3 parameters too (Rajbhandari et al. 2020); 0 if and only if dp_shard is 1.
        sequence_parallel: Ops outside tensor parallel regions divide the sequence over tp ranks.
        offload: Optimizer state lives in host memory.
        sync: Sync mode and compression as :mod:`autopar.sync` writes them, ``all_reduce``.
        bucket_bytes: Gradient bucket size of the all-reduce.
        data_split: One of :data:`~autopar.plans.checks.DATA_SPLITS`: how samples go to replicas.
        clip_norm: Global gradient-norm limit, ``None`` for no clipping.
        placement: Device id of each rank.
        seed: Seed of weights and data order.
        threads: Compute threads of a rank on a CPU host; ``None`` shares the host's cores over
            its ranks. A prediction holds for the thread count that was profiled.
        cluster: Name of the cluster it was planned for.
        predicted: What the planner expects (JSON form of :class:`PlanPrice`), not hashed.

    Raises:
        InputError: A field contradicts another; the message names both.
    """

    task: TaskRef
    mesh: Mesh
    stages: tuple[Stage, ...]
    schedule: str = "none"
    microbatches: int = 1
    microbatch_size: int = 1
    batch_shares: tuple[int, ...] = ()
    precision: str = "float32"
    zero: int = 0
    sequence_parallel: bool = False
    offload: bool = False
    sync: str = "all_reduce"
    bucket_bytes: int = 25 * 1024**2
    data_split: str = "random"
    clip_norm: float | None = None
    placement: tuple[int, ...] = ()
    seed: int = 0
    threads: int | None = None
    cluster: str = ""
    predicted: dict[str, Any] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        if not self.placement:
            object.__setattr__(self, "placement", tuple(range(self.mesh.world_size)))
        check_plan(self)
        if set(self.batch_shares) == {self.microbatch_size}:  # one way to write equal shares
            object.__setattr__(self, "batch_shares", ())

    @property
    def world_size(self) -> int:
        """Number of ranks."""
        return self.mesh.world_size

    @property
    def global_batch(self) -> int:
        """Samples per optimizer step over all replicas."""
        return self.mesh.replicas * self.microbatches * self.microbatch_size

    def replica_microbatch(self, replica: int) -> int:
        """Samples per microbatch of one replica."""
        return self.batch_shares[replica] if self.batch_shares else self.microbatch_size

    @property
    def largest_microbatch(self) -> int:
        """Samples per microbatch of the replica that has most."""
        return max(self.batch_shares, default=self.microbatch_size)

    @property
    def spreads_weights(self) -> bool:
        """True when ranks of one stage hold different parts of its weights."""
        mesh = self.mesh
        return mesh.dp_shard > 1 or mesh.tp > 1 or mesh.ep > 1

    @property
    def chunks(self) -> int:
        """Virtual stages per pipeline rank (1 unless interleaved)."""
        return len(self.stages) // self.mesh.pp

    @property
    def recomputes(self) -> bool:
        """True when any stage recomputes activations."""
        return any(stage.recompute or stage.selective for stage in self.stages)

    @property
    def name(self) -> str:
        """Short name, e.g. ``dp2·pp2·1f1b·m8·b4·rc``."""
        mesh = self.mesh
        parts = [
            f"{label}{degree}"
            for label, degree in (
                ("dp", mesh.dp_replicate),
                (f"zero{self.zero}x", mesh.dp_shard),
                ("cp", mesh.cp),
                ("tp", mesh.tp),
                ("pp", mesh.pp),
                ("ep", mesh.ep),
            )
            if degree > 1
        ]
        if mesh.pp > 1:
            parts.append(self.schedule + (f"x{self.chunks}" if self.chunks > 1 else ""))
        parts += [f"m{self.microbatches}", f"b{self._batch_name()}"]
        if self.sequence_parallel:
            parts.append("sp")
        parts += self._recompute_names()
        if self.offload:
            parts.append("offload")
        if self.sync != "all_reduce":
            parts.append(self.sync)
        return "·".join(parts if mesh.world_size > 1 else ["single", *parts])

    def _batch_name(self) -> str:
        """``4``, or ``6+2`` for uneven shares, ``2to6`` if they are many."""
        shares = self.batch_shares
        if len(shares) > _NAMED_SHARES:
            return f"{min(shares)}to{max(shares)}"
        return "+".join(map(str, shares)) or str(self.microbatch_size)

    def _recompute_names(self) -> list[str]:
        """``rc`` and ``sel`` when they cover the whole model, else with their number of ranges."""
        names = []
        for label, ranges in (
            ("rc", [pair for stage in self.stages for pair in stage.recompute]),
            ("sel", [pair for stage in self.stages for pair in stage.selective]),
        ):
            covered = sum(stop - first for first, stop in ranges)
            if ranges:
                names.append(label if covered == self.task.op_count else f"{label}{len(ranges)}")
        return names

    @cached_property
    def hash(self) -> str:
        """Content hash of everything but the prediction and the block names."""
        body = self._body()
        body.pop("predicted")
        if not self.batch_shares:  # hashes of plans without them stay what they were
            body.pop("batch_shares")
        for stage in body["stages"]:
            stage.pop("blocks")
            if not stage["units"]:  # hashes of plans without them stay what they were
                stage.pop("units")
        return content_hash(body)

    def _body(self) -> dict[str, Any]:
        data = {f.name: getattr(self, f.name) for f in fields(self)}
        data["task"] = field_values(self.task)
        data["mesh"] = self.mesh.to_dict()
        data["stages"] = [
            {
                **field_values(stage),
                "recompute": [list(pair) for pair in stage.recompute],
                "selective": [list(pair) for pair in stage.selective],
                "units": [list(pair) for pair in stage.units],
                "blocks": list(stage.blocks),
            }
            for stage in self.stages
        ]
        data["placement"] = list(self.placement)
        data["batch_shares"] = list(self.batch_shares)
        return data

    def to_dict(self) -> dict[str, Any]:
        """A complete, runnable plan document."""
        header = {"schema": SCHEMA, "schema_version": SCHEMA_VERSION}
        return {**header, "name": self.name, "hash": self.hash, **self._body()}

    def with_predicted(self, predicted: dict[str, Any]) -> Plan:
        """The same plan carrying a prediction."""
        return replace(self, predicted=predicted)

    @classmethod
    def from_dict(cls, data: dict[str, Any], origin: str = "plan") -> Plan:
        """Check and build.

        Raises:
            InputError: A field is missing, unknown or contradicts another.
        """
        check_schema(data, origin, SCHEMA, SCHEMA_VERSION)
        known = {f.name for f in fields(cls)} | {"schema", "schema_version", "name", "hash"}
        unknown = sorted(set(data) - known)
        if unknown:
            raise InputError(f"{origin}: unknown plan field '{unknown[0]}'", hint="remove it")
        try:
            body = {f.name: data[f.name] for f in fields(cls) if f.name in data}
            body["task"] = TaskRef(**body["task"])
            body["mesh"] = Mesh(**body["mesh"])
            body["stages"] = tuple(_stage(row) for row in body["stages"])
            body["placement"] = tuple(body.get("placement", ()))
            body["batch_shares"] = tuple(body.get("batch_shares", ()))
            return cls(**body)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(
                f"{origin}: bad plan field: {type(error).__name__}: {error}",
                hint="make the plan again with `autopar plan`",
            ) from error

    def save(self, path: Path) -> None:
        """Write the plan file atomically."""
        body = self.to_dict()
        write_document(path, body.pop("schema"), body.pop("schema_version"), body)

    @classmethod
    def load(cls, path: Path) -> Plan:
        """Read a plan file.

        Raises:
            InputError: Missing, truncated, of another schema or inconsistent.
        """
        return cls.from_dict(read_json(path), str(path))


def _stage(row: dict[str, Any]) -> Stage:
    return Stage(
        **{
            **row,
            **{
                key: tuple((int(a), int(b)) for a, b in row.get(key, ()))
                for key in ("recompute", "selective", "units")
            },
            "blocks": tuple(row.get("blocks", ())),
        }
    )
