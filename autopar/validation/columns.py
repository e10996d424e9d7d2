"""Rows as columns: one array per quantity, so that one formula prices all rows at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from autopar.validation.platform import WIDE
from autopar.validation.rows import Row

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """What the formula reads, one entry per row; see :class:`~autopar.validation.rows.Row`.

    Attributes not found there:
        peak_flop_per_s: Dense peak of the run's precision.
        peak16_flop_per_s: Dense peak of its attention: 16 bit, or float32 where the run is.
        item_bytes: Bytes of a parameter and of an activation element.
        query: Width of all query heads.
        keys: Width of all key heads.
        gates: Matrices that lead into the MLP: 2 if gated, else 1.
        flop_per_token: NaN where the shape says it all.
        full: 1 with full recompute.
        selective: 1 with selective recompute.
        first, middle, last: Blocks of those stages, see ``Row.stage_layers``.
    """

    layers: Array
    hidden: Array
    heads: Array
    head_dim: Array
    query: Array
    keys: Array
    ffn: Array
    gates: Array
    vocab: Array
    experts: Array
    active_experts: Array
    expert_ffn: Array
    shared_ffn: Array
    expert_width: Array
    attention_share: Array
    dense_layers: Array
    scan_width: Array
    flop_per_token: Array
    seq: Array
    micro_batch: Array
    microbatches: Array
    devices: Array
    devices_per_node: Array
    intra_bytes_per_s: Array
    inter_bytes_per_s: Array
    dp: Array
    tp: Array
    pp: Array
    vpp: Array
    cp: Array
    ep: Array
    zero: Array
    zero_ranks: Array
    full: Array
    selective: Array
    fused_attention: Array
    older_attention: Array
    sequence_parallel: Array
    gradient_bytes: Array
    fused_softmax: Array
    overlaps_sync: Array
    overlaps_tensor: Array
    gathers_once: Array
    lora: Array
    head_share: Array
    first: Array
    middle: Array
    last: Array
    float8: Array
    float4: Array
    block_scaled: Array
    peak_flop_per_s: Array
    peak16_flop_per_s: Array
    item_bytes: Array
    memory_bytes_per_s: Array
    multiprocessors: Array
    mean_time: Array

    @property
    def tokens(self) -> Array:
        """Tokens of a microbatch on one context parallel rank."""
        return self.micro_batch * self.seq / self.cp

    @property
    def replicas(self) -> Array:
        """Ranks that hold the same parameters."""
        return np.maximum(self.dp * self.cp, 1)

    @property
    def dense_share(self) -> Array:
        """Part of the blocks that have a dense MLP."""
        return np.where(self.experts > 0, self.dense_layers / self.layers, 1.0)

    def __len__(self) -> int:
        return len(self.layers)

    def take(self, index: npt.NDArray[np.intp] | npt.NDArray[np.bool_]) -> Columns:
        """The columns of some rows."""
        return Columns(**{f.name: getattr(self, f.name)[index] for f in fields(self)})


def columns(rows: Sequence[Row]) -> Columns:
    """Columns of rows, in their order."""
    facts = [_facts(row) for row in rows]
    names = [f.name for f in fields(Columns)]
    return Columns(**{name: np.array([fact[name] for fact in facts], float) for name in names})


def _facts(row: Row) -> dict[str, float]:
    shape, platform = row.shape, row.platform
    peak = platform.peak_flop_per_s
    wide = row.precision in WIDE
    return {
        "layers": shape.layers,
        "hidden": shape.hidden,
        "heads": shape.heads,
        "head_dim": shape.head_dim,
        "query": shape.heads * shape.head_dim,
        "keys": shape.kv_heads * shape.head_dim,
        "ffn": shape.ffn,
        "gates": 1 + shape.gated,
        "vocab": shape.vocab,
        "experts": shape.experts,
        "active_experts": shape.active_experts,
        "expert_ffn": shape.expert_ffn,
        "shared_ffn": shape.shared_ffn,
        "expert_width": shape.expert_width or shape.hidden,
        "attention_share": shape.attention_share,
        "dense_layers": shape.dense_layers,
        "scan_width": shape.scan_width,
        "flop_per_token": shape.flop_per_token or np.nan,
        "seq": row.seq,
        "micro_batch": row.micro_batch,
        "microbatches": row.microbatches,
        "devices": row.devices,
        "devices_per_node": row.devices_per_node,
        "intra_bytes_per_s": row.intra_bytes_per_s,
        "inter_bytes_per_s": row.inter_bytes_per_s,
        "dp": row.dp,
        "tp": row.tp,
        "pp": row.pp,
        "vpp": row.vpp,
        "cp": row.cp,
        "ep": row.ep,
        "zero": row.zero,
        "zero_ranks": row.zero_ranks,
        "full": row.recompute == "full",
        "selective": row.recompute == "selective",
        "fused_attention": row.fused_attention,
        "older_attention": row.older_attention,
        "sequence_parallel": row.sequence_parallel,
        "gradient_bytes": row.gradient_bytes,
        "fused_softmax": row.fused_softmax,
        "overlaps_sync": row.overlaps_sync,
        "overlaps_tensor": row.overlaps_tensor,
        "gathers_once": row.gathers_once,
        "lora": row.lora,
        "head_share": row.head_share,
        "first": row.stage_layers[0],
        "middle": row.stage_layers[1],
        "last": row.stage_layers[2],
        "float8": row.precision == "float8",
        "float4": row.precision == "float4",
        "block_scaled": row.block_scaled,
        "peak_flop_per_s": peak[row.precision],
        "peak16_flop_per_s": min(peak["float16"], peak[row.precision] if wide else np.inf),
        "item_bytes": 4 if wide else 2,
        "memory_bytes_per_s": platform.memory_bytes_per_s,
        "multiprocessors": platform.multiprocessors,
        "mean_time": platform.mean_time,
    }
