"""What a memory estimate needs beyond a row's plan: what its framework keeps and how it counts."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from autopar.calibration.memory import LOSS_FACTORS
from autopar.validation.rows.platform import WIDE
from autopar.validation.rows.rows import Row

Array = npt.NDArray[np.float64]

RECOMPUTE_ASSUMED = "recompute"
"""Start of the note on a row whose source does not state recompute."""
MASTER_BYTES = 12.0
"""Adam in mixed precision: float32 parameter and two moments (Rajbhandari et al. 2020)."""
ADAM_BYTES = 8.0
"""Two float32 moments; the parameter is its own master."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Habits:
    """What a framework generation keeps on a device.

    Attributes:
        gradient_bytes: Per parameter through a step of a 16-bit run.
        bf16_gradient_bytes: The same where bfloat16 runs keep float32 gradients as well; these
            are what the optimizer reads, so the update makes no copy and buckets are float32;
            0 for no difference.
        replica_bytes: Per parameter more with several replicas: gradient buckets that
            DistributedDataParallel holds beside the gradients.
        update_bytes: Per parameter of the local shard while the optimizer runs: float32 gradients
            and temporaries.
        sharded_update_bytes: The same under ZeRO-3, whose gradients are float32 shards already.
        buckets: Gradient buckets of a sharded optimizer.
        loss: Key of ``LOSS_FACTORS``.
        dropout: Blocks keep two dropout masks of a byte per element.
        fused_gate: A gated MLP keeps its two branches and the product, not the activation.
        whole_device: Its memory figure counts the whole device, with context and communicators;
            else the allocator's bytes only.
        pipeline_gathers: With pipeline stages, ZeRO-3 parameters and gradients stay whole through
            the step, so as not to be gathered for each microbatch.
        selective_products: Selective recompute keeps every other matrix product, not all but the
            attention scores.
        keeps_gathered: Sequence parallel inputs of a block's products are kept as gathered, on
            every rank of the tensor parallel group.
        recompute: What it recomputes when the row does not say and memory is what tells; empty: as
            the row's assumption.
        stages: ``even`` as the rows say, ``late`` where the remainder goes to the last stages,
            ``balanced`` where the head counts as the blocks it equals in parameters.
        source: Where this was read.
    """

    gradient_bytes: float = 2.0
    bf16_gradient_bytes: float = 0.0
    replica_bytes: float = 0.0
    update_bytes: float = 0.0
    sharded_update_bytes: float = 0.0
    buckets: float = 0.0
    loss: str = "inplace"
    dropout: bool = True
    fused_gate: bool = False
    whole_device: bool = True
    pipeline_gathers: bool = False
    selective_products: bool = False
    keeps_gathered: bool = False
    recompute: str = ""
    stages: str = "even"
    source: str


_DEEPSPEED = Habits(
    update_bytes=4.0,
    buckets=2.0,
    source="DeepSpeed stage_1_and_2.py: 16-bit gradients, float32 copy of the shard at the update",
)
_MEGATRON_CORE = Habits(
    gradient_bytes=4.0,
    whole_device=False,
    dropout=False,
    fused_gate=True,
    source="Megatron-Core DDP: float32 gradient buffer; fused SwiGLU",
)
HABITS: Mapping[str, Habits] = {
    "bigscience": Habits(
        update_bytes=4.0,
        bf16_gradient_bytes=6.0,
        buckets=2.0,
        loss="copied",
        source="DeepSpeed; its BF16_Optimizer adds float32 gradients to the 16-bit ones; loss of "
        "bigscience-workshop/Megatron-DeepSpeed clones its input",
    ),
    "bigscience-2021": _DEEPSPEED,
    "vtrain": _DEEPSPEED,
    "megatron-deepspeed": _DEEPSPEED,
    "sailor": _DEEPSPEED,
    "amp": Habits(
        update_bytes=4.0,
        loss="copied",
        recompute="none",
        source="DeepSpeed; loss of Megatron-LM 1.1 keeps logits and their exponentials; no "
        "recompute is inferred: 16-way data parallelism of 0.36e9 parameters fails on 15 GiB at "
        "microbatch 2, where recompute would need 11",
    ),
    "deepspeed": _DEEPSPEED,
    "megatron": Habits(
        update_bytes=4.0, source="Megatron-LM FP16 optimizer: float32 copy of the gradients"
    ),
    "megatron-bridge": _MEGATRON_CORE,
    "nemo": _MEGATRON_CORE,
    "megatron-core": _MEGATRON_CORE,
    "internevo": Habits(
        update_bytes=14.0,
        sharded_update_bytes=8.0,
        dropout=False,
        stages="late",
        source="InternLM hybrid_zero_optim.py: flat 16-bit and float32 gradients of the shard, "
        "2 + 4; torch 1.13 foreach AdamW: root and denominator of the second moment, 4 + 4",
    ),
    "torchtitan": Habits(
        whole_device=False,
        loss="eager",
        dropout=False,
        pipeline_gathers=True,
        keeps_gathered=True,
        selective_products=True,
        source="torchtitan parallelize_llama.py: no reshard with pipeline stages, SAC by op; "
        "autograd keeps what PrepareModuleInput gathers",
    ),
    "fsdp1": Habits(
        whole_device=False,
        loss="fused",
        dropout=False,
        source="llm-foundry MPT: loss_fn fused_crossentropy, no dropout",
    ),
    "nanotron": Habits(
        gradient_bytes=4.0,
        replica_bytes=2.0,
        whole_device=False,
        loss="copied",
        dropout=False,
        keeps_gathered=True,
        stages="balanced",
        source="nanotron: float32 gradient accumulator beside the 16-bit buckets of DDP "
        "(gradient_accumulator.py, trainer.py), loss subtracts the largest logit into a new "
        "float32 tensor (tensor_parallel/functional.py), stages balanced by block cost; kept "
        "inputs inferred from the growth of the peak with tp",
    ),
}
"""Framework generation -> habits; a new source is one entry."""
USUAL = Habits(
    whole_device=False,
    loss="eager",
    dropout=False,
    source="mixed precision Adam and torch's own loss",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """Columns of the memory formula that step times do not need; one entry per row.

    Attributes:
        weight_bytes: Per parameter and activation element.
        gradient_bytes: Per parameter.
        optimizer_bytes: Per parameter of the shard.
        update_bytes: Per parameter of the shard, while the optimizer runs.
        reduce_bytes: Per parameter of a bucket or gathered unit being reduced.
        buckets: Gradient buckets.
        loss: Factor on the bytes per logit.
        dropout: 1 where blocks keep dropout masks.
        gate: Matrices' outputs and elementwise results that a gated MLP keeps, over those of one
            without a gate; 1 without.
        whole_device: 1 where the measured figure counts the whole device.
        pipeline_gathers: 1 where ZeRO-3 parameters stay whole with pipeline stages.
        selective_products: 1 where selective recompute keeps every other product.
        keeps_gathered: 1 where gathered inputs of products are kept.
        tied: 1 where embedding and head share one matrix.
        micros: Microbatches per step.
        trained: Trained part of the parameters.
        capacity_bytes: Of the smallest device.
        full, selective: 1 with that recompute.
        first, middle, last: Blocks of those stages.
    """

    weight_bytes: Array
    gradient_bytes: Array
    optimizer_bytes: Array
    update_bytes: Array
    reduce_bytes: Array
    buckets: Array
    loss: Array
    dropout: Array
    gate: Array
    whole_device: Array
    pipeline_gathers: Array
    selective_products: Array
    keeps_gathered: Array
    tied: Array
    micros: Array
    trained: Array
    capacity_bytes: Array
    full: Array
    selective: Array
    first: Array
    middle: Array
    last: Array


LORA_SHARE = 0.003
"""Trained part of the parameters with adapters of rank 8-16 on all projections."""


def facts(rows: Sequence[Row]) -> Facts:
    """Memory facts of rows, in their order."""
    entries = [_facts(row) for row in rows]
    names = [f.name for f in fields(Facts)]
    return Facts(**{name: np.array([entry[name] for entry in entries], float) for name in names})


def _facts(row: Row) -> dict[str, float]:
    habits = HABITS.get(row.framework, USUAL)
    text = row.printed.get("precision", "").lower()
    gradient = habits.gradient_bytes + (habits.replica_bytes if row.dp > 1 else 0.0)
    weight, optimizer, update = 2.0, MASTER_BYTES, habits.update_bytes
    reduce = weight
    if row.zero == 3:
        reduce, update = 4.0, habits.sharded_update_bytes
    if "bf16" in text and habits.bf16_gradient_bytes:
        gradient, reduce, update = habits.bf16_gradient_bytes, 4.0, 0.0
    loss = habits.loss
    if row.precision in WIDE:
        weight, gradient, optimizer, loss = 4.0, 4.0, ADAM_BYTES, "float32"
    elif "bf16-true" in text:
        optimizer, reduce = ADAM_BYTES / 2, 2.0  # Lightning: everything is 16 bit
    tied = _tied(row)
    first, middle, last = _stages(row, habits)
    recompute = habits.recompute if unstated_recompute(row) and habits.recompute else row.recompute
    return {
        "weight_bytes": weight,
        "gradient_bytes": gradient,
        "optimizer_bytes": optimizer,
        "update_bytes": update,
        "reduce_bytes": reduce,
        "buckets": habits.buckets if row.zero and row.dp > 1 else 0.0,
        "loss": LOSS_FACTORS[loss],
        "dropout": habits.dropout,
        "gate": (1.5 if habits.fused_gate else 2.0) if row.shape.gated else 1.0,
        "whole_device": habits.whole_device,
        "pipeline_gathers": habits.pipeline_gathers,
        "selective_products": habits.selective_products,
        "keeps_gathered": habits.keeps_gathered,
        "tied": tied,
        "micros": _microbatches(row),
        "trained": LORA_SHARE if row.lora else 1.0,
        "capacity_bytes": capacity_bytes(row),
        "full": recompute == "full",
        "selective": recompute == "selective",
        "first": first,
        "middle": middle,
        "last": last,
    }


def _tied(row: Row) -> bool:
    """Whether one table serves as embedding and head.

    What a size printed with three digits says, else as usual: unless the MLP is gated.
    """
    s, named = row.shape, re.search(r"\b([0-9]+\.[0-9]+)B\b", row.model)
    if s.experts or named is None or len(named[1]) < len("1.23"):
        return not s.gated
    printed = named[1]
    step = 10.0 ** -len(printed.partition(".")[2])
    attention = s.hidden * (2 * s.heads + 2 * s.kv_heads) * s.head_dim
    blocks = s.layers * (attention + (2 + s.gated) * s.hidden * s.ffn)
    fits = [
        abs((blocks + tables * s.vocab * s.hidden) / 1e9 - float(printed)) <= step / 2
        for tables in (1, 2)
    ]
    return fits[0] if fits[0] != fits[1] else not s.gated


def unstated_recompute(row: Row) -> bool:
    """Whether the recompute of a row is an assumption, of this package or of who copied it."""
    return "AC assumed" in row.printed.get("notes", "") or any(
        note.startswith(RECOMPUTE_ASSUMED) for note in row.assumed
    )


def _stages(row: Row, habits: Habits) -> tuple[float, float, float]:
    """Blocks of the first, the largest middle and the last stage."""
    layers, pp = row.shape.layers, row.pp
    if pp == 1 or habits.stages == "even":
        return row.stage_layers
    most, least = -(-layers // pp), layers // pp
    if habits.stages == "late":
        return float(least), float(most) if pp > 2 else 0.0, float(most)
    shape = row.shape
    attention = shape.hidden * (2 * shape.heads + 2 * shape.kv_heads) * shape.head_dim
    block = attention + (2 + shape.gated) * shape.hidden * shape.ffn
    head = shape.vocab * shape.hidden / block
    share = (layers + head) / pp
    last = max(1.0, round(share - head))
    rest = (layers - last) / (pp - 1)
    return rest, rest if pp > 2 else 0.0, last


def _microbatches(row: Row) -> float:
    """Microbatches per step, also where only the notes count them."""
    printed = re.search(r"micro_num (\d+)", row.printed.get("notes", ""))
    return float(printed[1]) if printed else row.microbatches


def capacity_bytes(row: Row) -> float:
    """Memory of a device: what its name says, else the catalogue's."""
    sizes = re.findall(r"(\d+)\s?GB", row.printed.get("gpu", ""))
    if sizes:
        return min(float(size) for size in sizes) * 1024**3
    return float(row.platform.memory_bytes)
