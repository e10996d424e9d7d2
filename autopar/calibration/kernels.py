"""Seconds of the primitives every step consists of; all arguments broadcast as numpy arrays.

One set of formulas serves the planner, op by op of a traced graph, and the validation on published
runs, row by row.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from autopar.calibration.constants import Constants

Array = npt.NDArray[np.float64]

TILES = ((256, 128, 1.0), (128, 128, 1.08), (64, 128, 1.25), (64, 64, 1.6))
"""Tile sides of matrix kernels and their relative cost per element."""
BACKWARD_STREAM = 1.6
"""Backward over forward of memory-bound ops: they read more and write more."""
BACKWARD_FLASH = 2.5
"""Backward over forward FLOPs of fused attention, which computes the scores again."""


OLDER_ATTENTION = 1.7
"""Time of FlashAttention-2 over FlashAttention-3 on Hopper: 1.5 to 2.0 (Shah et al. 2024)."""
ROW_CAST_BYTES = 20.0
"""Bytes per element more where rows have scales of their own: the operand is scaled twice, along
rows for one product and along columns for another. Llama 3 8B on 8 H100 trains at 7,186 tokens/s
with a scale per tensor and at 6,412 with one per row (torchtitan, commit 7a04053): 17 us a token
over 2.2e6 elements at 2.6e12 B/s, slower products of such operands included."""
HOP_S, NODE_HOP_S = 3.4e-6, 1.4e-5
"""A step of a ring inside a node and between nodes (NCCL, ``graph/tuning.cc``: ``hwLat`` of the
simple protocol)."""


def gemm_seconds(
    c: Constants,
    m: Array,
    n: Array,
    k: Array,
    *,
    item_bytes: Array | float,
    peak_flop_per_s: Array | float,
    memory_bytes_per_s: Array | float,
    multiprocessors: Array | float,
) -> Array:
    """Seconds of an ``m x k`` by ``k x n`` product.

    ``2 * out * (k + k0) / rate`` joined with the time of its bytes by a norm of power 4, where
    ``out`` mixes ``m n`` plus idle elements of the last tiles with whole waves of the cheapest
    tile.

    Args:
        c: Constants.
        m: Rows.
        n: Columns.
        k: Contraction length.
        item_bytes: Bytes of an element.
        peak_flop_per_s: Dense peak times the precision's efficiency relative to 16 bit.
        memory_bytes_per_s: Bandwidth that streaming reaches.
        multiprocessors: Of the device.
    """
    share = np.minimum(c.wave_share, 1.0)
    out = (1 - share) * (m * n + c.tile_elements * multiprocessors) + share * _waves(
        m, n, multiprocessors
    )
    compute = 2 * out * (k + c.contraction_start) / (peak_flop_per_s * c.gemm_efficiency)
    memory = item_bytes * (m * n + n * k + m * k) / memory_bytes_per_s
    penalty = np.where((np.round(n) % 64 != 0) | (np.round(k) % 64 != 0), c.misaligned, 1.0)
    # Squares and roots: numpy's general power would take most of a fit's time.
    longer = np.sqrt(np.square(np.square(compute)) + np.square(np.square(memory)))
    return np.asarray(np.sqrt(longer) * penalty)


def _waves(m: Array, n: Array, multiprocessors: Array | float) -> Array:
    """Result elements when tiles run in whole waves, for the cheapest tile."""
    best: Array | None = None
    for rows, columns, cost in TILES:
        tiles = np.ceil(m / rows) * np.ceil(n / columns)
        waves = np.ceil(tiles / multiprocessors)
        elements = waves * multiprocessors * rows * columns * cost
        best = elements if best is None else np.minimum(best, elements)
    assert best is not None  # TILES is not empty
    return best


def cast_seconds(
    c: Constants,
    elements: Array,
    memory_bytes_per_s: Array | float,
    *,
    row_scaled: Array | float = 0.0,
) -> Array:
    """Seconds of finding the scale of a 16-bit operand and casting it to 8 or 4 bits.

    Products shrink faster than their operands, so this is what narrow ones of small models lose
    (torchao, ``float8/README.md``: 8 bit is slower than 16 at sides of 1,024).

    Args:
        c: Constants.
        elements: Of the operand.
        memory_bytes_per_s: Bandwidth that streaming reaches.
        row_scaled: 1 where each row has its own scale, see :data:`ROW_CAST_BYTES`.
    """
    each = c.cast_bytes + ROW_CAST_BYTES * row_scaled
    return np.asarray(elements * each / memory_bytes_per_s)


def flash_seconds(c: Constants, flop: Array, peak_flop_per_s: Array | float) -> Array:
    """Forward seconds of fused causal attention; half of the score matrix is computed.

    Args:
        c: Constants.
        flop: FLOPs over the whole score matrix.
        peak_flop_per_s: Dense 16-bit peak.
    """
    return np.asarray(flop * 0.5 / (peak_flop_per_s * c.flash_efficiency))


def host_seconds(c: Constants, kernels: Array | float, tp: Array) -> Array:
    """Host time of launching kernels; wider groups launch slower."""
    return np.asarray(c.launch_s * kernels * (1 + c.launch_tp * np.log2(tp)))


def phase_seconds(c: Constants, device_s: Array, host_s: Array) -> Array:
    """Device and host work side by side: the longer one, rounded off where they are close."""
    return np.asarray((device_s**c.phase_norm + host_s**c.phase_norm) ** (1 / c.phase_norm))


def gather_seconds(c: Constants, compute_s: Array, collective_s: Array) -> Array:
    """A phase beside which parameters are gathered (FSDP prefetch)."""
    longer, shorter = np.maximum(compute_s, collective_s), np.minimum(compute_s, collective_s)
    return np.asarray(longer + c.gather_exposed * shorter)


def unfused_attention_seconds(  # noqa: PLR0913 - physics has that many quantities
    c: Constants,
    flop: Array,
    scores: Array,
    *,
    head_dim: Array,
    contraction: Array,
    falls_back: Array,
    item_bytes: Array | float,
    peak_flop_per_s: Array | float,
    memory_bytes_per_s: Array | float,
) -> Array:
    """Forward seconds of attention that writes its scores: two batched products and a softmax.

    ``flop / rate * (1 + k0 / contraction)`` plus ``score_bytes`` per score; the whole matrix is
    computed, also above the diagonal.

    Args:
        c: Constants.
        flop: FLOPs over the whole score matrix.
        scores: Elements of the score matrix.
        head_dim: Width of a head; sizes not divisible by 8 miss the tensor cores.
        contraction: The shorter contraction of the two products.
        falls_back: Whether the fused softmax refuses the shape.
        item_bytes: Bytes of an element.
        peak_flop_per_s: Dense 16-bit peak, or the float32 one in float32 runs.
        memory_bytes_per_s: Bandwidth that streaming reaches.
    """
    slow = np.where(head_dim % 8 != 0, c.head_misaligned, 1.0)
    products = flop / (peak_flop_per_s * c.gemm_efficiency) * slow
    products = products * (1 + c.contraction_start / contraction)
    per_score = c.score_bytes * np.where(falls_back, c.score_fallback, 1.0) * item_bytes / 2
    return np.asarray(products + scores * per_score / memory_bytes_per_s)


def layer_collective_seconds(
    c: Constants, size_bytes: Array, ranks: Array, bytes_per_s: Array
) -> Array:
    """An all-reduce inside a layer, or the reduce-scatter and all-gather that replace it.

    ``alpha * (1 + log2(n) / 2) + 2 (n - 1) / n * bytes / rate``: ring bandwidth, latency that
    grows with the tree's depth; times the exposed part.
    """
    ring = 2 * (ranks - 1) / ranks * size_bytes / bytes_per_s
    latency = c.collective_latency_s * (1 + 0.5 * np.log2(ranks))
    return np.asarray(np.where(ranks > 1, (latency + ring) * c.tp_exposed, 0.0))


def gather_ring_seconds(
    c: Constants, size_bytes: Array, ranks: Array, bytes_per_s: Array, *, nodes: Array
) -> Array:
    """An all-gather or reduce-scatter of one layer's parameters over the data parallel ranks.

    ``alpha + (n - 1) / n * bytes / rate`` with ``bytes`` the gathered size, and a hop for each of
    the ``n - 1`` steps, one a node across the network: these collectives know no tree.
    """
    ring = (ranks - 1) / ranks * size_bytes / bytes_per_s
    hops = HOP_S * (ranks - nodes) + NODE_HOP_S * (nodes - 1)
    return np.asarray(c.collective_latency_s + ring + hops)


def exposed_sync_seconds(exposed: Array | float, exchange_s: Array, hidden_by_s: Array) -> Array:
    """What gradient exchange adds to a step.

    The exposed part ``x`` always; of the rest, what does not fit beside the backward pass that
    hides it: ``x R + (1 - min(x, 1)) max(0, R - backward)``.

    Args:
        exposed: Part of the exchange that nothing hides.
        exchange_s: Seconds of the whole exchange.
        hidden_by_s: Seconds of the backward pass beside it.
    """
    rest = (1 - np.minimum(exposed, 1.0)) * np.maximum(0.0, exchange_s - hidden_by_s)
    return np.asarray(exposed * exchange_s + rest)
