"""Megatron-LM: arguments of ``pretrain_gpt.py`` as a bash array to source.

Written for core_v0.19.0 (2026-08-19): names, defaults and constraints from its
``megatron/training/arguments.py``, ``megatron/core/model_parallel_config.py``,
``megatron/core/transformer/transformer_config.py`` and ``pipeline_parallel_layer_layout.py``.
"""

from __future__ import annotations

import math
import shlex
from typing import ClassVar
from urllib.parse import parse_qsl

from autopar.exporters.base import AbstractExport, Notes, Subject
from autopar.exporters.facts import recomputes_all, share_recomputed
from autopar.exporters.layers import Layers, layers_of
from autopar.plans import Plan

_FLOAT32_BYTES = 4
_SIZES = {
    "layers": ("--num-layers",),
    "hidden": ("--hidden-size",),
    "heads": ("--num-attention-heads",),
    "ffn": ("--ffn-hidden-size",),
    "seq": ("--seq-length", "--max-position-embeddings"),
}
"""Options of ``zoo:gpt`` that Megatron-LM has arguments for."""
_OWN_SCHEDULES = ("none", "1f1b", "interleaved")
_DEGREES = {
    "tp": "--tensor-model-parallel-size",
    "pp": "--pipeline-model-parallel-size",
    "cp": "--context-parallel-size",
    "ep": "--expert-model-parallel-size",
}

_Words = list[str]


class Megatron(AbstractExport):
    """Parallelism, batch, precision, recompute and optimizer arguments."""

    name: ClassVar[str] = "megatron"
    written_for: ClassVar[str] = "Megatron-LM core_v0.19.0 of 2026-08-19"
    rest: ClassVar[str] = "Megatron-LM has no argument for it"

    def body(self, subject: Subject, notes: Notes) -> str:
        """See :class:`AbstractExport`."""
        plan, hosts = subject.plan, subject.hosts
        notes.lose(
            "cluster",
            f"the launcher's matter: torchrun --nnodes={hosts.nodes} "
            f"--nproc-per-node={hosts.ranks_per_node}",
        )
        words = [
            *_model(plan, notes),
            *_degrees(plan, notes),
            *_pipeline(plan, notes),
            *_batch(plan, notes),
            *_recompute(plan, notes),
            *_optimizer(plan, notes),
            *_precision(plan, notes),
        ]
        rows = "".join(f"  {row}\n" for row in _rows(words))
        use = '# source FILE; torchrun ... pretrain_gpt.py "${MEGATRON_ARGS[@]}" ...\n'
        if plan.zero > 1:
            use += "# Megatron-FSDP: leave CUDA_DEVICE_MAX_CONNECTIONS unset or above 1.\n"
        return f"{use}MEGATRON_ARGS=(\n{rows})\n"


def _rows(words: _Words) -> list[str]:
    """One argument with its values a line, quoted for the shell."""
    rows: list[str] = []
    for word in words:
        if word.startswith("--"):
            rows.append(word)
        else:
            rows[-1] += f" {shlex.quote(word)}"
    return rows


def _model(plan: Plan, notes: Notes) -> _Words:
    """Sizes that a zoo target names."""
    zoo, _, options = (plan.task.target or "").partition("?")
    words = []
    for key, value in parse_qsl(options):
        for argument in _SIZES.get(key, ()) if zoo == "zoo:gpt" and value.isdecimal() else ():
            words += [argument, value]
    notes.lose(
        "task",
        "Megatron-LM trains its own models, not a traced one: "
        + (f"only {', '.join(words[::2])} are carried over, " if words else "")
        + "give it the other sizes, vocabulary, data and learning rate",
    )
    return words


def _degrees(plan: Plan, notes: Notes) -> _Words:
    words: _Words = []
    for axis, argument in _DEGREES.items():
        degree = getattr(plan.mesh, axis)
        words += [argument, str(degree)]
        notes.keep(f"mesh.{axis}", argument)
    if plan.sequence_parallel:
        words.append("--sequence-parallel")
        notes.keep("sequence_parallel", "--sequence-parallel")
    return words


def _pipeline(plan: Plan, notes: Notes) -> _Words:
    """Stages as layers per virtual stage where they are even, else as a layout."""
    if plan.mesh.pp == 1:
        return []
    if plan.schedule in _OWN_SCHEDULES:
        notes.keep("schedule", "--pipeline-model-parallel-size")
    else:
        nearest = "1F1B" if plan.chunks == 1 else "interleaved 1F1B"
        notes.lose("schedule", f"Megatron-LM runs {nearest}, not '{plan.schedule}'")
    virtual = ["--num-virtual-stages-per-pipeline-rank", str(plan.chunks)]
    if any(stage.pp != number % plan.mesh.pp for number, stage in enumerate(plan.stages)):
        notes.lose(
            "stages",
            "stages lie in a V over the ranks, Megatron-LM deals equal ones out in loops",
        )
        return virtual
    layers = layers_of(plan)
    if layers is None:
        notes.lose(
            "stages",
            "not cut between the layers of one stack: Megatron-LM divides its layers evenly",
        )
        return virtual if plan.chunks > 1 else []
    if not layers.exact:
        notes.lose("stages", layers.why_inexact())
    if layers.even and plan.chunks == 1:
        notes.keep("stages", "--pipeline-model-parallel-size")
        return []
    if layers.even:
        notes.keep("stages", "--num-layers-per-virtual-pipeline-stage")
        return ["--num-layers-per-virtual-pipeline-stage", str(len(layers.stages[0]))]
    notes.keep("stages", "--pipeline-model-parallel-layout")
    return ["--pipeline-model-parallel-layout", layout(layers)]


def layout(layers: Layers) -> str:
    """Stages as Megatron-LM writes them: ``E`` embedding, ``t`` layer, ``L`` loss, ``|`` a cut."""
    parts = ["t" * len(stage) for stage in layers.stages]
    parts[0] = "E" + parts[0]
    parts[-1] += "L"
    return "|".join(parts)


def _batch(plan: Plan, notes: Notes) -> _Words:
    notes.keep("microbatch_size", "--micro-batch-size")
    notes.keep("microbatches", "--global-batch-size")
    notes.keep("mesh.dp_replicate", "--global-batch-size")  # what is left of the ranks
    return [
        "--micro-batch-size",
        str(plan.microbatch_size),
        "--global-batch-size",
        str(plan.global_batch),
    ]


def _recompute(plan: Plan, notes: Notes) -> _Words:
    full = any(stage.recompute for stage in plan.stages)
    selective = any(stage.selective for stage in plan.stages)
    where = "--recompute-granularity"
    if not full and not selective:
        return []
    if not full:
        notes.keep("selective", where)
        notes.lose(
            "selective",
            "Megatron-LM recomputes core attention, in all layers; other cheap ops by "
            "--recompute-modules",
        )
        return [where, "selective"]
    notes.keep("recompute", where)
    notes.lose("selective", "not mixed with full recompute: these blocks keep everything")
    words = [where, "full", "--recompute-method"]
    layers = layers_of(plan)
    if recomputes_all(plan, "recompute") or layers is None:
        if layers is None and not recomputes_all(plan, "recompute"):
            notes.lose("recompute", "the plan recomputes some blocks, this all layers")
        return [*words, "uniform", "--recompute-num-layers", "1"]
    most = max(
        math.ceil(len(held) * share_recomputed((stage,), "recompute"))
        for held, stage in zip(layers.stages, plan.stages, strict=True)
    )
    notes.lose(
        "recompute",
        f"the plan chooses blocks, this the first {max(most, 1)} layer(s) of each stage",
    )
    return [*words, "block", "--recompute-num-layers", str(max(most, 1))]


def _optimizer(plan: Plan, notes: Notes) -> _Words:
    mesh = plan.mesh
    words = ["--clip-grad", "0.0" if plan.clip_norm is None else str(plan.clip_norm)]
    notes.keep("clip_norm", "--clip-grad")
    if plan.seed > 0:
        words += ["--seed", str(plan.seed)]
        notes.keep("seed", "--seed")
    else:
        notes.lose("seed", "Megatron-LM wants a positive seed")
    if mesh.replicas > 1:  # gradients are summed while backward runs, in buckets of elements
        elements = max(1, plan.bucket_bytes // _FLOAT32_BYTES)
        words += ["--overlap-grad-reduce", "--ddp-bucket-size", str(elements)]
        notes.keep("bucket_bytes", "--ddp-bucket-size")
    if plan.zero:
        words += _sharding(plan, notes)
    if plan.offload:
        words += ["--optimizer-cpu-offload", "--use-precision-aware-optimizer"]
        notes.keep("offload", "--optimizer-cpu-offload")
        if not plan.zero:
            words.append("--use-distributed-optimizer")
            notes.lose("offload", "needs the distributed optimizer, which also shares out states")
    return words


def _sharding(plan: Plan, notes: Notes) -> _Words:
    """ZeRO-1 is the distributed optimizer, ZeRO-2 and 3 are Megatron-FSDP."""
    words = ["--use-distributed-optimizer"]
    notes.keep("zero", "--use-distributed-optimizer")
    notes.keep("mesh.dp_shard", "--use-distributed-optimizer")
    if plan.zero > 1:
        strategy = "optim_grads" if plan.zero == 2 else "optim_grads_params"
        words += ["--use-megatron-fsdp", "--data-parallel-sharding-strategy", strategy]
        words += ["--ckpt-format", "fsdp_dtensor"]
        notes.keep("zero", "--data-parallel-sharding-strategy")
        notes.lose("units", "Megatron-FSDP shards each transformer layer as one unit")
    if plan.mesh.dp_replicate > 1:
        words += ["--num-distributed-optimizer-instances", str(plan.mesh.dp_replicate)]
        notes.keep("mesh.dp_replicate", "--num-distributed-optimizer-instances")
    return words


def _precision(plan: Plan, notes: Notes) -> _Words:
    """16-bit compute with float32 main weights."""
    arguments = {
        "bfloat16": ["--bf16"],
        "float16": ["--fp16"],
        "float8": ["--bf16", "--fp8-format", "hybrid"],
    }.get(plan.precision)
    if arguments is not None:
        notes.keep("precision", arguments[-2] if len(arguments) > 1 else arguments[0])
        return arguments
    if plan.precision != "float32":
        notes.lose("precision", f"written as float32, not {plan.precision}: set it in torch")
    return []
