"""torchtitan: a job configuration in TOML.

Written for v0.2.2 (2026-02-20), the last release that reads TOML: key names and defaults from its
``torchtitan/config/job_config.py``. Its main branch has configured in Python since 2026-02-23
(commit 9810191), with the same field names under ``ParallelismConfig`` and ``TrainingConfig``.
"""

from __future__ import annotations

from typing import Any, ClassVar

from autopar.exporters.base import AbstractExport, Notes, Subject
from autopar.exporters.facts import recomputes_all
from autopar.exporters.layers import Layers, layers_of
from autopar.exporters.writing import toml
from autopar.plans import Plan
from autopar.plans.mesh import Mesh

SCHEDULES = {
    "gpipe": "GPipe",
    "1f1b": "1F1B",
    "interleaved": "Interleaved1F1B",
    "looped_bfs": "LoopedBFS",
    "interleaved_zb": "InterleavedZeroBubble",
    "zbv": "ZBVZeroBubble",
    "dualpipev": "DualPipeV",
}
"""Our schedules under the names of torch's ``get_schedule_class``."""
_PRECISION_LOSSES = {
    "tf32": "written as float32: set torch.backends.cuda.matmul.fp32_precision in code",
    "float16": "torchtitan has no loss scaling: written as bfloat16",
    "float8": "written as bfloat16: choose a float8 converter under [model] converters",
}

_Table = dict[str, Any]


class Torchtitan(AbstractExport):
    """Degrees, stages, schedule, batch, precision and recompute of a torchtitan job."""

    name: ClassVar[str] = "torchtitan"
    written_for: ClassVar[str] = "torchtitan v0.2.2 of 2026-02-20"
    rest: ClassVar[str] = "torchtitan has no option for it"

    def body(self, subject: Subject, notes: Notes) -> str:
        """See :class:`AbstractExport`."""
        plan, hosts = subject.plan, subject.hosts
        notes.lose(
            "task",
            "torchtitan trains the models it registers, not a traced one: set name and flavor "
            "under [model], seq_len and dataset under [training]; its defaults are a Llama of "
            "debugging size",
        )
        notes.lose(
            "cluster",
            f"the launcher's matter: torchrun --nnodes={hosts.nodes} "
            f"--nproc-per-node={hosts.ranks_per_node}",
        )
        notes.lose("units", "torchtitan shards each transformer block as one unit")
        tables = {
            "training": {
                **_batch(plan, notes),
                **_precision(plan, notes),
                **_offload(plan, notes),
            },
            "parallelism": {
                **_data_parallel(plan, notes),
                **_degrees(plan.mesh, notes, sequence_parallel=plan.sequence_parallel),
            },
            "activation_checkpoint": _recompute(plan, notes),
            "debug": {"seed": plan.seed},
        }
        notes.keep("seed", "debug.seed")
        if plan.mesh.pp > 1:
            tables["parallelism"] |= _pipeline(plan, notes)
        return toml(tables)


def _batch(plan: Plan, notes: Notes) -> _Table:
    """``local_batch_size`` is what one forward call or one pipeline step takes."""
    local = plan.microbatch_size * (plan.microbatches if plan.mesh.pp > 1 else 1)
    notes.keep("microbatches", "training.global_batch_size")
    notes.keep("microbatch_size", "training.local_batch_size")
    notes.keep("clip_norm", "training.max_norm")
    return {
        "local_batch_size": local,
        "global_batch_size": plan.global_batch,
        "max_norm": float("inf") if plan.clip_norm is None else float(plan.clip_norm),
    }


def _precision(plan: Plan, notes: Notes) -> _Table:
    """Weights stay float32; compute dtype by FSDP's policy or, under DDP alone, by autocast."""
    mesh = plan.mesh
    notes.keep("precision", "training.mixed_precision_param")
    if plan.precision in _PRECISION_LOSSES:
        notes.lose("precision", _PRECISION_LOSSES[plan.precision])
    if not shards(mesh) and mesh.cp == 1 and (mesh.tp > 1 or mesh.pp > 1):
        notes.lose(
            "precision",
            "torchtitan applies mixed_precision_param through FSDP, or through autocast where "
            "only data is parallel: this mesh has neither and computes in float32",
        )
    wide = plan.precision in ("float32", "tf32")
    return {
        "dtype": "float32",
        "mixed_precision_param": "float32" if wide else "bfloat16",
        "mixed_precision_reduce": "float32",
    }


def _offload(plan: Plan, notes: Notes) -> _Table:
    if not plan.offload:
        return {}
    notes.keep("offload", "training.enable_cpu_offload")
    notes.lose(
        "offload",
        "torchtitan moves parameters and gradients to the host too, and only under FSDP",
    )
    return {"enable_cpu_offload": True}


def shards(mesh: Mesh) -> bool:
    """True when the written configuration uses FSDP: asked for, or in place of replicas."""
    return mesh.dp_shard > 1 or stands_in(mesh)


def stands_in(mesh: Mesh) -> bool:
    """True when replicas beside other axes have to be written as shards."""
    other = mesh.cp > 1 or mesh.tp > 1 or mesh.pp > 1 or mesh.ep > 1
    return mesh.dp_replicate > 1 and mesh.dp_shard == 1 and other


def _data_parallel(plan: Plan, notes: Notes) -> _Table:
    mesh, table = plan.mesh, "parallelism"
    replicate, shard = mesh.dp_replicate, mesh.dp_shard
    notes.keep("mesh.dp_replicate", f"{table}.data_parallel_replicate_degree")
    notes.keep("mesh.dp_shard", f"{table}.data_parallel_shard_degree")
    if stands_in(mesh):
        replicate, shard = 1, mesh.dp_replicate
        notes.keep("mesh.dp_replicate", f"{table}.data_parallel_shard_degree")
        notes.lose(
            "mesh.dp_replicate",
            "torchtitan's replicas do not combine with other axes: written as FSDP shards that "
            "keep weights gathered after forward, same mathematics, less memory, other timing",
        )
    rows: _Table = {
        "data_parallel_replicate_degree": replicate,
        "data_parallel_shard_degree": shard,
    }
    if shard > 1 or mesh.cp > 1:
        rows["fsdp_reshard_after_forward"] = "always" if plan.zero == 3 else "never"
    if mesh.dp_shard > 1:
        notes.keep("zero", f"{table}.fsdp_reshard_after_forward")
    if plan.zero == 1:
        notes.lose(
            "zero", "FSDP shares out gradients and weights too; 'never' is nearest to ZeRO-2"
        )
    return rows


def _degrees(mesh: Mesh, notes: Notes, *, sequence_parallel: bool) -> _Table:
    """Tensor, context and expert degrees; experts take their ranks from the data axes."""
    rows = {}
    for axis, word in (("tp", "tensor"), ("cp", "context"), ("ep", "expert")):
        key = f"{word}_parallel_degree"
        rows[key] = getattr(mesh, axis)
        notes.keep(f"mesh.{axis}", f"parallelism.{key}")
    if mesh.ep > 1:
        rows["expert_tensor_parallel_degree"] = mesh.tp
    if sequence_parallel:
        notes.keep("sequence_parallel", "parallelism.tensor_parallel_degree")
    elif mesh.tp > 1:
        notes.change(
            "sequence_parallel",
            "torchtitan also divides the sequence between the layers, the plan keeps it whole",
        )
    return rows


def _recompute(plan: Plan, notes: Notes) -> _Table:
    full = any(stage.recompute for stage in plan.stages)
    selective = any(stage.selective for stage in plan.stages)
    where = "activation_checkpoint.mode"
    if full:
        notes.keep("recompute", where)
        if not recomputes_all(plan, "recompute"):
            notes.lose(
                "recompute", "the plan recomputes some blocks: 'full' recomputes all layers"
            )
        notes.lose("selective", "not mixed with full recompute: 'full' recomputes all layers")
        return {"mode": "full"}
    if not selective:
        return {"mode": "none"}
    notes.keep("selective", where)
    if not recomputes_all(plan, "selective"):
        notes.lose("selective", "the plan does so in some blocks: torchtitan does in all layers")
    return {"mode": "selective", "selective_ac_option": "op"}


def _pipeline(plan: Plan, notes: Notes) -> _Table:
    table = "parallelism"
    notes.keep("mesh.pp", f"{table}.pipeline_parallel_degree")
    notes.keep("schedule", f"{table}.pipeline_parallel_schedule")
    notes.keep("microbatch_size", f"{table}.pipeline_parallel_microbatch_size")
    schedule = SCHEDULES.get(plan.schedule)
    if schedule is None:
        schedule = "1F1B" if plan.chunks == 1 else "Interleaved1F1B"
        notes.lose("schedule", f"torch has no schedule '{plan.schedule}': written as {schedule}")
    if plan.schedule == "looped_bfs":
        notes.lose("schedule", "torch's LoopedBFS runs the backwards of a stage in reverse order")
    rows: _Table = {
        "pipeline_parallel_degree": plan.mesh.pp,
        "pipeline_parallel_schedule": schedule,
        "pipeline_parallel_microbatch_size": plan.microbatch_size,
    }
    layers = layers_of(plan)
    parts = None if layers is None else _modules(layers)
    if layers is None or parts is None:
        notes.lose(
            "stages",
            "not cut between the layers of one stack: torchtitan divides its layers evenly"
            + (f" over {plan.chunks} stages a rank if 2" if plan.chunks > 1 else ""),
        )
        return rows
    notes.keep("stages", f"{table}.module_fqns_per_model_part")
    if not layers.exact:
        notes.lose("stages", layers.why_inexact())
    return {**rows, "module_fqns_per_model_part": parts}


def _modules(layers: Layers) -> list[list[str]] | None:
    """Module names of each stage as torchtitan's language models have them, if none is empty."""
    parts = [[f"layers.{index}" for index in stage] for stage in layers.stages]
    parts[0].insert(0, "tok_embeddings")
    parts[-1] += ["norm", "output"]
    return parts if all(parts) else None
