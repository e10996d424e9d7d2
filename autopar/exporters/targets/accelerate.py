"""accelerate: the YAML file of ``accelerate launch --config_file``, for DDP or FSDP2.

Written for v1.14.0 (2026-06-11): keys from its ``commands/config/config_args.py`` (which refuses
unknown ones), ``commands/launch.py``, ``parallelism_config.py`` and ``examples/``.
"""

from __future__ import annotations

from typing import Any, ClassVar

from autopar.exporters.base import AbstractExport, Notes, Subject
from autopar.exporters.facts import recomputes_all
from autopar.exporters.writing import yaml
from autopar.plans import Plan

_Config = dict[str, Any]
_PRECISIONS = {"float32": "no", "bfloat16": "bf16", "float16": "fp16", "float8": "fp8"}
_ON_CPU = {
    True: "accelerate shards on accelerators only and refuses this file on CPU hosts",
    False: "on CPU hosts the script says Accelerator(cpu=True), or each process trains alone",
}


class Accelerate(AbstractExport):
    """Processes, precision, FSDP2 options and the sizes of its parallelism configuration."""

    name: ClassVar[str] = "accelerate"
    written_for: ClassVar[str] = "accelerate v1.14.0 of 2026-06-11"
    rest: ClassVar[str] = "accelerate's configuration file has no key for it"

    def body(self, subject: Subject, notes: Notes) -> str:
        """See :class:`AbstractExport`."""
        plan = subject.plan
        _script(plan, notes)
        sharded = _sharded(plan)
        config: _Config = {
            "compute_environment": "LOCAL_MACHINE",
            "debug": False,
            "distributed_type": _kind(subject, sharded=sharded),
            **_machines(subject, notes),
            "mixed_precision": _precision(plan, notes),
        }
        if not subject.hosts.accelerators and _processes(plan) > 1:
            notes.change("cluster", _ON_CPU[sharded])
        if sharded:
            config["fsdp_config"] = _fsdp(plan, notes)
            config["parallelism_config"] = _sizes(plan, notes)
        else:
            notes.keep("mesh.dp_replicate", "num_processes")
            notes.lose("recompute", "the model checkpoints its own blocks under DDP")
            notes.lose("selective", "the model checkpoints its own blocks under DDP")
            notes.lose("offload", "optimizer state goes to the host under FSDP only")
        return yaml(config)


def _sharded(plan: Plan) -> bool:
    """True when FSDP2 and its mesh are needed; DDP otherwise."""
    mesh = plan.mesh
    return mesh.dp_shard > 1 or mesh.tp > 1 or mesh.cp > 1


def _kind(subject: Subject, *, sharded: bool) -> str:
    """The launcher's kind; MULTI_GPU also starts CPU ranks, MULTI_CPU only under mpirun."""
    if sharded:
        return "FSDP"
    return "NO" if _processes(subject.plan) == 1 else "MULTI_GPU"


def _processes(plan: Plan) -> int:
    """Ranks without the pipeline axis, which accelerate does not have."""
    return plan.world_size // plan.mesh.pp


def _machines(subject: Subject, notes: Notes) -> _Config:
    """Hosts; where pipelines are lost, as many as the remaining processes fill."""
    plan, hosts = subject.plan, subject.hosts
    processes = _processes(plan)
    nodes = hosts.nodes if plan.mesh.pp == 1 else max(1, processes // hosts.ranks_per_node)
    nodes = nodes if processes % nodes == 0 else 1
    notes.keep("cluster", "num_machines")
    if plan.mesh.pp > 1:
        notes.lose("cluster", f"without the pipeline, {nodes} of {hosts.nodes} hosts are left")
    for key, reason in hosts.doubts:
        notes.lose(key, reason)
    rows: _Config = {
        "num_machines": nodes,
        "num_processes": processes,
        "machine_rank": 0,
        "use_cpu": not hosts.accelerators,
    }
    if nodes > 1:
        notes.lose(
            "cluster", "give each host --machine_rank, --main_process_ip and --main_process_port"
        )
        rows |= {"rdzv_backend": "c10d", "same_network": True}
    return rows


def _script(plan: Plan, notes: Notes) -> None:
    """What accelerate leaves to the training script."""
    notes.lose("task", "the training script brings model, data and optimizer")
    notes.lose(
        "microbatches",
        f"in the script: Accelerator(gradient_accumulation_steps={plan.microbatches})",
    )
    notes.lose(
        "microbatch_size", f"in the script: the DataLoader's batch_size={plan.microbatch_size}"
    )
    notes.lose("clip_norm", f"in the script: accelerator.clip_grad_norm_(..., {plan.clip_norm})")
    notes.lose("seed", f"in the script: accelerate.utils.set_seed({plan.seed})")
    notes.lose("sync", "accelerate averages gradients at every step; DDP hooks go into the script")
    notes.lose("bucket_bytes", "in the script: DistributedDataParallelKwargs(bucket_cap_mb=...)")
    notes.lose("sequence_parallel", "the model's own tensor-parallel plan says so")
    if plan.mesh.pp > 1:
        left = f"accelerate does not train pipelines: {_processes(plan)} processes are left"
        for key in ("mesh.pp", "stages", "schedule"):
            notes.lose(key, left)
    notes.lose("mesh.ep", "accelerate does not divide experts")


def _precision(plan: Plan, notes: Notes) -> str:
    notes.keep("precision", "mixed_precision")
    if plan.precision == "float8":
        notes.lose("precision", "choose its backend under fp8_config")
    if plan.precision not in _PRECISIONS:
        notes.lose("precision", f"written as float32, not {plan.precision}: set it in torch")
    return _PRECISIONS.get(plan.precision, "no")


def _fsdp(plan: Plan, notes: Notes) -> _Config:
    full = any(stage.recompute for stage in plan.stages)
    notes.keep("zero", "fsdp_config.fsdp_reshard_after_forward")
    if plan.zero == 1:
        notes.lose("zero", "FSDP2 shares out gradients and weights too; nearest to ZeRO-2")
    notes.lose("units", "accelerate wraps by module class: fsdp_transformer_layer_cls_to_wrap")
    if full:
        notes.keep("recompute", "fsdp_config.fsdp_activation_checkpointing")
        if not recomputes_all(plan, "recompute"):
            notes.lose("recompute", "the plan recomputes some blocks, this all wrapped ones")
    notes.lose("selective", "accelerate recomputes whole wrapped blocks or none")
    if plan.offload:
        notes.keep("offload", "fsdp_config.fsdp_offload_params")
        notes.lose("offload", "accelerate moves parameters and gradients to the host too")
    return {
        "fsdp_version": 2,
        "fsdp_reshard_after_forward": plan.zero == 3,
        "fsdp_auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
        "fsdp_activation_checkpointing": full,
        "fsdp_offload_params": plan.offload,
        "fsdp_cpu_ram_efficient_loading": False,
        "fsdp_state_dict_type": "SHARDED_STATE_DICT",
    }


def _sizes(plan: Plan, notes: Notes) -> _Config:
    mesh, table = plan.mesh, "parallelism_config.parallelism_config"
    replicate, shard = mesh.dp_replicate, mesh.dp_shard
    for axis in ("dp_replicate", "dp_shard", "tp", "cp"):
        notes.keep(f"mesh.{axis}", f"{table}_{axis}_size")
    if replicate > 1 and shard == 1:
        replicate, shard = 1, mesh.dp_replicate
        notes.keep("mesh.dp_replicate", f"{table}_dp_shard_size")
        notes.lose(
            "mesh.dp_replicate",
            "accelerate refuses plain replicas beside tp or cp: written as FSDP2 shards that keep "
            "weights gathered after forward, same mathematics, less memory, other timing",
        )
    return {
        "parallelism_config_dp_replicate_size": replicate,
        "parallelism_config_dp_shard_size": shard,
        "parallelism_config_tp_size": mesh.tp,
        "parallelism_config_cp_size": mesh.cp,
    }
