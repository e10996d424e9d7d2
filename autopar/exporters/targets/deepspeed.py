"""DeepSpeed: the JSON configuration that ``deepspeed.initialize(config=...)`` takes.

Written for v0.19.5 (2026-08-09): keys and defaults from its ``docs/_pages/config-json.md``,
``deepspeed/runtime/config.py`` and ``deepspeed/runtime/zero/config.py``.
"""

from __future__ import annotations

import json
from typing import Any, ClassVar

from autopar.exporters.base import AbstractExport, Notes, Subject
from autopar.plans import Plan

_Config = dict[str, Any]
_HIGHEST_PIPELINE_STAGE = 1


class DeepSpeed(AbstractExport):
    """ZeRO stage, offload, precision, batch and clipping; tensor and expert degrees."""

    name: ClassVar[str] = "deepspeed"
    written_for: ClassVar[str] = "DeepSpeed v0.19.5 of 2026-08-09"
    comment: ClassVar[str | None] = None
    rest: ClassVar[str] = "DeepSpeed's configuration has no key for it"

    def body(self, subject: Subject, notes: Notes) -> str:
        """See :class:`AbstractExport`."""
        plan, hosts = subject.plan, subject.hosts
        notes.lose("task", "the training script brings model, data and optimizer")
        notes.lose(
            "cluster",
            f"the launcher's matter: deepspeed --num_nodes {hosts.nodes} "
            f"--num_gpus {hosts.ranks_per_node}",
        )
        for key in ("recompute", "selective"):
            notes.lose(
                key, "the model calls deepspeed.checkpointing.checkpoint or torch's around blocks"
            )
        notes.lose("sequence_parallel", "AutoTP keeps whole sequences between divided layers")
        config = {
            **_batch(plan, notes),
            **_precision(plan, notes),
            "zero_optimization": _zero(plan, notes),
            **_model_parallel(plan, notes),
        }
        return json.dumps(config, indent=2, allow_nan=False) + "\n"


def _batch(plan: Plan, notes: Notes) -> _Config:
    """The product rule of DeepSpeed: batch = micro x accumulation x data-parallel ranks."""
    notes.keep("microbatch_size", "train_micro_batch_size_per_gpu")
    notes.keep("microbatches", "gradient_accumulation_steps")
    notes.keep("mesh.dp_replicate", "train_batch_size")
    notes.keep("mesh.dp_shard", "train_batch_size")
    notes.keep("clip_norm", "gradient_clipping")
    return {
        "train_batch_size": plan.global_batch,
        "train_micro_batch_size_per_gpu": plan.microbatch_size,
        "gradient_accumulation_steps": plan.microbatches,
        "gradient_clipping": 0.0 if plan.clip_norm is None else plan.clip_norm,
    }


def _precision(plan: Plan, notes: Notes) -> _Config:
    """16-bit weights and compute with float32 main weights, as DeepSpeed keeps them."""
    for name, key in (("bfloat16", "bf16"), ("float16", "fp16")):
        if plan.precision == name:
            notes.keep("precision", f"{key}.enabled")
            return {key: {"enabled": True}}
    if plan.precision.startswith("float8"):
        notes.keep("precision", "bf16.enabled")
        notes.lose(
            "precision", "written as bfloat16: DeepSpeed leaves float8 to the model's layers"
        )
        return {"bf16": {"enabled": True}}
    if plan.precision != "float32":
        notes.lose("precision", f"written as float32, not {plan.precision}: set it in torch")
    return {}


def _zero(plan: Plan, notes: Notes) -> _Config:
    mesh, stage = plan.mesh, plan.zero
    notes.keep("zero", "zero_optimization.stage")
    if mesh.pp > 1 and stage > _HIGHEST_PIPELINE_STAGE:
        notes.lose("zero", f"DeepSpeed's pipelines take ZeRO stage 0 or 1, not {stage}: written 1")
        stage = _HIGHEST_PIPELINE_STAGE
    rows: _Config = {"stage": stage}
    if stage and mesh.dp_replicate > 1:
        if stage == 3:
            rows["mics_shard_size"] = mesh.dp_shard
            notes.keep("mesh.dp_shard", "zero_optimization.mics_shard_size")
            notes.lose(
                "mesh.dp_replicate", "MiCS: the model must be built under deepspeed.zero.MiCS_Init"
            )
        else:
            notes.lose(
                "mesh.dp_replicate",
                f"ZeRO stage {stage} shares out over all {mesh.replicas} data ranks, not over "
                f"groups of {mesh.dp_shard}",
            )
    if plan.offload and stage:
        rows["offload_optimizer"] = {"device": "cpu", "pin_memory": True}
        notes.keep("offload", "zero_optimization.offload_optimizer")
    elif plan.offload:
        notes.lose("offload", "offload_optimizer needs ZeRO stage 1 or more")
    return rows


def _model_parallel(plan: Plan, notes: Notes) -> _Config:
    mesh = plan.mesh
    config: _Config = {}
    if mesh.tp > 1:
        config["tensor_parallel"] = {"autotp_size": mesh.tp}
        notes.keep("mesh.tp", "tensor_parallel.autotp_size")
        notes.lose(
            "mesh.tp",
            "AutoTP divides the layers of models it knows: preset_model or partition_config says "
            "which, not this plan",
        )
    if mesh.cp > 1:
        config["sequence_parallel_size"] = mesh.cp
        notes.keep("mesh.cp", "sequence_parallel_size")
        notes.lose(
            "mesh.cp",
            "Ulysses in its place: attention by heads after an all-to-all, and the script has to "
            "register it with the model",
        )
    if mesh.ep > 1 and mesh.tp > 1:
        notes.lose("mesh.ep", "AutoEP does not combine with AutoTP")
    elif mesh.ep > 1 and plan.zero == 3 and (mesh.dp_replicate > 1 or mesh.cp > 1):
        notes.lose("mesh.ep", "with ZeRO-3, AutoEP combines with neither MiCS nor Ulysses")
    elif mesh.ep > 1:
        config["expert_parallel"] = {"enabled": True, "autoep_size": mesh.ep}
        notes.keep("mesh.ep", "expert_parallel.autoep_size")
        notes.lose("mesh.ep", "AutoEP divides the experts of models it knows: set preset_model")
    if mesh.pp > 1:
        script = "the script builds deepspeed.pipe.PipelineModule"
        notes.lose("mesh.pp", f"{script}(num_stages={mesh.pp})")
        notes.lose("stages", f"{script} with a partition_method of its own")
        notes.lose("schedule", "DeepSpeed's pipelines run 1F1B")
    return config
