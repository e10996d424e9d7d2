"""Rows as columns: one array per quantity, so that one formula prices all rows at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from operator import attrgetter
from typing import Any

import numpy as np
import numpy.typing as npt

from autopar.validation.rows.platform import WIDE, Platform
from autopar.validation.rows.rows import Row
from autopar.validation.rows.shapes import Shape

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """What the formula reads, one entry per row; see ``Row``, ``Shape`` and ``Platform``.

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
    row_scaled: Array
    autocast: Array
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
    return Columns(
        **{name: np.array([read(row) for row in rows], float) for name, read in _READERS.items()}
    )


def _peak16(row: Row) -> float:
    peak = row.platform.peak_flop_per_s
    wide = row.precision in WIDE
    return min(peak["float16"], peak[row.precision] if wide else np.inf)


_DERIVED: dict[str, Callable[[Row], float]] = {
    "query": lambda row: row.shape.heads * row.shape.head_dim,
    "keys": lambda row: row.shape.kv_heads * row.shape.head_dim,
    "gates": lambda row: 1 + row.shape.gated,
    "expert_width": lambda row: row.shape.expert_width or row.shape.hidden,
    "flop_per_token": lambda row: row.shape.flop_per_token or np.nan,
    "full": lambda row: row.recompute == "full",
    "selective": lambda row: row.recompute == "selective",
    "first": lambda row: row.stage_layers[0],
    "middle": lambda row: row.stage_layers[1],
    "last": lambda row: row.stage_layers[2],
    "float8": lambda row: row.precision == "float8",
    "float4": lambda row: row.precision == "float4",
    "peak_flop_per_s": lambda row: row.platform.peak_flop_per_s[row.precision],
    "peak16_flop_per_s": _peak16,
    "item_bytes": lambda row: 4 if row.precision in WIDE else 2,
}
"""Columns that are not an attribute of the row, its shape or its platform."""


def _reader(name: str) -> Callable[[Row], float]:
    """What a column reads: its derivation, or the attribute of its name, the row's first."""
    if name in _DERIVED:
        return _DERIVED[name]
    places: tuple[tuple[str, Any], ...] = (("", Row), ("shape.", Shape), ("platform.", Platform))
    place = next(path for path, kind in places if name in {f.name for f in fields(kind)})
    return attrgetter(place + name)


_READERS = {field.name: _reader(field.name) for field in fields(Columns)}
