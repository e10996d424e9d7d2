"""What a published run recomputes: as stated, as its framework does, or as its memory demands."""

from __future__ import annotations

from autopar.validation.rows.frameworks import Framework
from autopar.validation.rows.rows import Row
from autopar.validation.rows.table import Entry

RECOMPUTE_MARGIN = 1.35
"""A run whose recompute is not stated recomputes when it would not fit by this factor; the
margin is the error of the memory estimate."""


def recompute_of(entry: Entry, framework: Framework, row: Row, notes: list[str]) -> str:
    """``none``, ``selective`` or ``full``, and what was filled in added to ``notes``.

    Args:
        entry: The row as printed.
        framework: Its framework.
        row: The row, complete but for this.
        notes: What was filled in.
    """
    text = entry.text("recompute").lower()
    for name in ("selective", "full", "none"):
        if name in text:
            return name
    if framework.recompute:
        notes.append(f"recompute {framework.recompute} assumed, the framework's usual setting")
        return framework.recompute
    if row.platform.shares_host_memory and framework.offloads:
        notes.append(
            "recompute none assumed: the framework's recipes offload to the host's memory"
        )
        return "none"
    needs = kept_bytes(row) > RECOMPUTE_MARGIN * row.platform.memory_bytes
    notes.append(f"recompute {'full' if needs else 'none'} assumed, by memory")
    return "full" if needs else "none"


def kept_bytes(row: Row) -> float:
    """Rough bytes of a device without recompute: states and activations in flight.

    Used only to decide whether a run whose page does not say must have recomputed; the memory
    model is :mod:`autopar.validation.memory.peak`.
    """
    s = row.shape
    wide = s.heads * s.head_dim
    keys = s.kv_heads * s.head_dim
    width = s.active_experts * s.expert_ffn + s.shared_ffn if s.experts else s.ffn
    matrices = 2 + s.gated
    held = s.experts * s.expert_ffn / row.ep + s.shared_ffn if s.experts else s.ffn
    attention = s.hidden * (2 * wide + 2 * keys)
    block = (attention + held * s.hidden * matrices) / row.tp
    params = block * s.layers / row.pp + s.vocab * s.hidden / row.tp
    state = (6 if row.zero < 3 else 6 / row.zero_ranks) + 12 / (row.zero_ranks if row.zero else 1)
    if row.lora:
        state = 2.0 / (row.zero_ranks if row.zero == 3 else 1)  # frozen weights, nothing else
    tokens = row.micro_batch * row.seq / row.cp
    split = row.tp if row.sequence_parallel else 1
    kept = tokens * 2 * (5 * s.hidden / split + (2 * wide + 2 * keys + matrices * width) / row.tp)
    if not row.fused_attention:
        kept += 5 * tokens * s.heads * row.seq / row.tp
    flight = min(row.microbatches, row.pp) * (
        1 + (row.pp - 1) / (row.pp * row.vpp) * (row.vpp > 1)
    )
    return params * state + kept * s.layers / row.pp * flight
