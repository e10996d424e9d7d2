"""Read what exporters write, and the words each tool knows, in the stated versions."""

from __future__ import annotations

import argparse
import csv
import io
import json
import re
import shlex
import tomllib
from typing import Any

import yaml

from autopar.plans import Plan

TORCHTITAN = {  # torchtitan v0.2.2, torchtitan/config/job_config.py: the tables we write
    "training": "local_batch_size global_batch_size seq_len max_norm steps enable_cpu_offload "
    "dtype mixed_precision_param mixed_precision_reduce",
    "parallelism": "data_parallel_replicate_degree data_parallel_shard_degree "
    "fsdp_reshard_after_forward tensor_parallel_degree disable_loss_parallel "
    "pipeline_parallel_degree module_fqns_per_model_part pipeline_parallel_layers_per_stage "
    "pipeline_parallel_schedule pipeline_parallel_microbatch_size context_parallel_degree "
    "expert_parallel_degree expert_tensor_parallel_degree",
    "activation_checkpoint": "mode selective_ac_option",
    "debug": "seed",
}
ACCELERATE = {  # accelerate v1.14.0, config_args.py and launch.py
    "": "compute_environment distributed_type mixed_precision use_cpu debug num_processes "
    "machine_rank num_machines main_process_ip main_process_port rdzv_backend same_network "
    "fsdp_config parallelism_config",
    "fsdp_config": "fsdp_version fsdp_offload_params fsdp_reshard_after_forward "
    "fsdp_auto_wrap_policy fsdp_transformer_layer_cls_to_wrap fsdp_state_dict_type "
    "fsdp_cpu_ram_efficient_loading fsdp_activation_checkpointing",
    "parallelism_config": "parallelism_config_dp_replicate_size parallelism_config_dp_shard_size "
    "parallelism_config_tp_size parallelism_config_cp_size",
}
DEEPSPEED = {  # DeepSpeed v0.19.5, docs/_pages/config-json.md and deepspeed/runtime
    "": "train_batch_size train_micro_batch_size_per_gpu gradient_accumulation_steps "
    "gradient_clipping bf16 fp16 zero_optimization tensor_parallel sequence_parallel_size "
    "expert_parallel",
    "bf16": "enabled",
    "fp16": "enabled",
    "zero_optimization": "stage mics_shard_size offload_optimizer",
    "tensor_parallel": "autotp_size",
    "expert_parallel": "enabled autoep_size",
}
_MEGATRON_NUMBERS = (  # Megatron-LM core_v0.19.0, megatron/training/arguments.py and configs
    "tensor-model-parallel-size pipeline-model-parallel-size context-parallel-size "
    "expert-model-parallel-size micro-batch-size global-batch-size recompute-num-layers seed "
    "ddp-bucket-size num-distributed-optimizer-instances num-layers hidden-size "
    "num-attention-heads ffn-hidden-size seq-length max-position-embeddings "
    "num-layers-per-virtual-pipeline-stage num-virtual-stages-per-pipeline-rank"
)
_MEGATRON_FLAGS = (
    "sequence-parallel bf16 fp16 use-distributed-optimizer use-megatron-fsdp overlap-grad-reduce "
    "optimizer-cpu-offload use-precision-aware-optimizer"
)
_MEGATRON_CHOICES = {
    "recompute-granularity": ["full", "selective"],
    "recompute-method": ["uniform", "block"],
    "data-parallel-sharding-strategy": ["no_shard", "optim", "optim_grads", "optim_grads_params"],
    "ckpt-format": ["torch", "torch_dist", "torch_dcp", "fsdp_dtensor"],
    "fp8-format": ["e4m3", "hybrid"],
}


def megatron(text: str) -> dict[str, Any]:
    """The array's words through a parser with Megatron-LM's arguments; only those given."""
    parser = argparse.ArgumentParser(argument_default=argparse.SUPPRESS, exit_on_error=False)
    for name in _MEGATRON_NUMBERS.split():
        parser.add_argument(f"--{name}", type=int)
    for name in _MEGATRON_FLAGS.split():
        parser.add_argument(f"--{name}", action="store_true")
    for name, choices in _MEGATRON_CHOICES.items():
        parser.add_argument(f"--{name}", choices=choices)
    parser.add_argument("--clip-grad", type=float)
    parser.add_argument("--pipeline-model-parallel-layout")
    words = shlex.split(text, comments=True)
    assert words[0] == "MEGATRON_ARGS=(" and words[-1] == ")"
    found = vars(parser.parse_args(words[1:-1]))
    return {"--" + key.replace("_", "-"): value for key, value in found.items()}


def script(text: str) -> dict[str, Any]:
    """The plan inside a shell script."""
    lines = text.splitlines()
    start = next(i for i, line in enumerate(lines) if line.endswith("<<'AUTOPAR_PLAN'"))
    assert lines[start + 2] == "AUTOPAR_PLAN"
    return {"plan": Plan.from_dict(json.loads(lines[start + 1])), "options": _sbatch(lines)}


def _sbatch(lines: list[str]) -> dict[str, str]:
    found = [re.fullmatch(r"#SBATCH --([a-z-]+)(?:=(.*))?", line) for line in lines]
    return {match[1]: match[2] for match in found if match}


def table(text: str) -> dict[str, Any]:
    """The first row."""
    return next(csv.DictReader(io.StringIO(text)))


READERS = {
    "torchrun": script,
    "slurm": script,
    "torchtitan": tomllib.loads,
    "megatron": megatron,
    "deepspeed": json.loads,
    "accelerate": yaml.safe_load,
    "perfetto": json.loads,
    "csv": table,
}
"""How the text of a target is parsed back; a new target adds a line."""


def at(parsed: Any, where: str) -> Any:
    """What stands at a dotted path, or under a Megatron-LM argument."""
    if where in parsed:
        return parsed[where]
    for part in where.split("."):
        parsed = parsed[part]
    return parsed


def unknown_words(target: str, parsed: dict[str, Any]) -> list[str]:
    """Keys that the tool does not have."""
    known = {"torchtitan": TORCHTITAN, "accelerate": ACCELERATE, "deepspeed": DEEPSPEED}.get(
        target
    )
    if known is None:
        return []
    top = known.get("", " ".join(known)).split()
    wrong = [key for key in parsed if key not in top]
    for name, words in known.items():
        wrong += [f"{name}.{key}" for key in parsed.get(name, {}) if key not in words.split()]
    return wrong
