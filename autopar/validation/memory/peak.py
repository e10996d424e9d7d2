"""Peak device memory of a transformer run in closed form, over arrays of rows.

States by ZeRO stage, kept activations times microbatches in flight, the block being computed, the
loss, buckets, the framework, and the allocator's margin; the peak is the largest over first,
middle and last stage. The planner counts the same parts from a graph;
:mod:`autopar.calibration.peak` puts both together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from autopar.calibration import peak
from autopar.calibration.memory import MemoryConstants
from autopar.validation.memory.facts import Facts, facts, unstated_recompute
from autopar.validation.rows.rows import Row
from autopar.validation.step_time.columns import Columns, columns

Array = npt.NDArray[np.float64]

GATHERED_UNITS = 2.0
"""Blocks whole at a time under ZeRO-3: the one in use and the one being prefetched."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryParts:
    """Bytes of the peak stage of each row, before the allocator's margin.

    Attributes:
        states: Parameters, gradients, optimizer state, with gathered units under ZeRO-3.
        activations: Kept for backward, all microbatches in flight.
        working: The block being computed.
        logits: Vocabulary projection and loss.
        update: Optimizer temporaries that add to the peak.
        buckets: Gradient buckets.
        framework: Context, libraries and communicators; 0 where the figure does not count them.
        total: All, with the margin on what the allocator serves.
    """

    states: Array
    activations: Array
    working: Array
    logits: Array
    update: Array
    buckets: Array
    framework: Array
    total: Array


def peak_memory(
    rows: Sequence[Row], constants: MemoryConstants | None = None
) -> tuple[Array, Array, Array]:
    """Peak memory of rows as their source counts it, with a range.

    Where recompute was assumed the range spans its alternatives too.

    Args:
        rows: Complete rows.
        constants: Constants; the shipped ones when ``None``.

    Returns:
        Bytes: central value, low and high end.
    """
    c = constants or MemoryConstants.shipped()
    if not rows:
        empty = np.zeros(0)
        return empty, empty, empty
    value = predict(c, rows)
    low, high = value.copy(), value.copy()
    open_rows = [i for i, row in enumerate(rows) if unstated_recompute(row)]
    for choice in ("none", "full"):
        other = [replace(rows[i], recompute=choice, assumed=()) for i in open_rows]
        if other:
            bytes_ = predict(c, other)
            low[open_rows] = np.minimum(low[open_rows], bytes_)
            high[open_rows] = np.maximum(high[open_rows], bytes_)
    return value, low * c.low_factor, high * c.high_factor


def predict(c: MemoryConstants, rows: Sequence[Row], *, whole_device: bool = False) -> Array:
    """Central estimate of the peak in bytes.

    Args:
        c: Constants.
        rows: Complete rows.
        whole_device: Count context and communicators also where the source does not; what a
            comparison with the capacity needs.
    """
    return memory_parts(c, rows, whole_device=whole_device).total


def memory_parts(
    c: MemoryConstants, rows: Sequence[Row], *, whole_device: bool = False
) -> MemoryParts:
    """Bytes of the peak and what they consist of, see :func:`predict`."""
    margin = np.array([c.margin(row.framework) for row in rows])
    return parts_of(c, columns(rows), facts(rows), margin, whole_device=whole_device)


def parts_of(
    c: MemoryConstants, x: Columns, f: Facts, margin: Array, *, whole_device: bool = False
) -> MemoryParts:
    """The formula over columns; see :func:`memory_parts`."""
    params = stage_parameters(x, f)
    kept = c.activation_factor * _kept_bytes(x, f)
    handed = c.activation_factor * _handed_bytes(x, f)
    flights = _in_flight(x, f)
    working = c.transient_factor * _working_bytes(x, f)
    logits = _logit_bytes(c, x, f)
    framework = _framework_bytes(c, x, f, whole_device=whole_device)
    alone = x.pp == 1
    stages = []
    for place, layers in enumerate((f.first, f.middle, f.last)):
        held = (kept * layers + handed) * np.where(alone, 1.0, flights[place])
        loss = np.where(alone | (place == 2), logits, 0.0)
        pieces = [
            _state_bytes(x, f, params[place]),
            held,
            working,
            loss,
            _update_bytes(c, x, f, params[place], held + working + loss),
            _bucket_bytes(c, f, params[place]),
        ]
        exists = np.where((place == 1) & (f.middle == 0), 0.0, 1.0)
        total = exists * peak.total_bytes(np.asarray(sum(pieces)), margin, framework)
        stages.append(np.stack([*pieces, framework, total]))
    stacked = np.stack(stages)
    fullest = np.argmax(stacked[:, -1], axis=0)
    return _parts(stacked[fullest, :, np.arange(len(x))])


def _framework_bytes(c: MemoryConstants, x: Columns, f: Facts, *, whole_device: bool) -> Array:
    """Context and communicators, where the figure counts them."""
    counted = np.ones_like(x.layers) if whole_device else f.whole_device
    context = peak.context_bytes(c, x.multiprocessors)
    return np.asarray(counted * (context + c.communicator_bytes * _communicators(x)))


def _update_bytes(c: MemoryConstants, x: Columns, f: Facts, params: Array, freed: Array) -> Array:
    """What float32 gradients and temporaries of the optimizer's shard add to the peak."""
    shards = np.where(x.zero >= 1, x.zero_ranks, 1.0)
    update = f.update_bytes * f.trained * params / shards
    return peak.update_bytes(c, update, freed)


def _bucket_bytes(c: MemoryConstants, f: Facts, params: Array) -> Array:
    """Gradient buckets, no larger than the gradients; ``bucket_bytes`` is of 16-bit ones."""
    size = c.bucket_bytes * f.reduce_bytes / 2
    return np.asarray(f.buckets * np.minimum(size, f.gradient_bytes * params))


def _parts(chosen: Array) -> MemoryParts:
    names = (
        "states",
        "activations",
        "working",
        "logits",
        "update",
        "buckets",
        "framework",
        "total",
    )
    return MemoryParts(**{name: chosen[:, i] for i, name in enumerate(names)})


def block_parameters(x: Columns) -> Array:
    """Parameters of an average block on one rank: projections, MLP or local experts, norms."""
    attention = x.hidden * (2 * x.query + 2 * x.keys)
    matrices = x.gates + 1
    dense = x.dense_share
    routed = x.experts * x.expert_ffn / x.ep + x.shared_ffn
    mlp = matrices * x.hidden * (dense * x.ffn + (1 - dense) * routed)
    return (attention + mlp) / x.tp + 4 * x.hidden


def stage_parameters(x: Columns, f: Facts) -> tuple[Array, Array, Array]:
    """Parameters of a rank in the first, a middle and the last stage."""
    block = block_parameters(x)
    table = x.vocab * x.hidden / x.tp
    positions = f.tied * x.seq * x.hidden
    alone = x.pp == 1
    tables = np.where(f.tied > 0, table, 2 * table)
    first = block * f.first + positions + np.where(alone, tables, table)
    return first, block * f.middle, block * f.last + np.where(alone, tables + positions, table)


def _state_bytes(x: Columns, f: Facts, params: Array) -> Array:
    """Parameters, gradients and optimizer state by ZeRO stage (Rajbhandari et al. 2020)."""
    ranks = np.maximum(x.zero_ranks, 1)
    trained = f.trained
    optimizer = f.optimizer_bytes * trained / np.where(x.zero >= 1, ranks, 1)
    gradients = f.gradient_bytes * trained / np.where(x.zero >= 2, ranks, 1)
    weights = f.weight_bytes / np.where(x.zero >= 3, ranks, 1)
    whole = (x.zero >= 3) & (ranks > 1)
    unit = np.minimum(block_parameters(x), params)
    table = x.vocab * x.hidden / x.tp
    per_unit = GATHERED_UNITS * f.weight_bytes + (f.weight_bytes + f.reduce_bytes) * trained
    gathered = unit * per_unit + table * 2 * f.weight_bytes
    staged = (f.pipeline_gathers > 0) & (x.pp > 1)
    gathered = np.where(staged, params * (f.weight_bytes + f.reduce_bytes), gathered)
    return params * (weights + gradients + optimizer) + np.where(whole, gathered, 0.0)


def _saved_bytes(x: Columns, f: Facts, scores: Array) -> Array:
    """Bytes a block saves for backward without recompute.

    ``34 s b h + 5 a s^2 b`` of a GPT block (Korthikanti et al. 2022, equation 1), written so that
    other attention and MLP widths fit: ``8 h``, and ``2 h`` of dropout masks, outside tensor
    parallel regions; ``4 (q + k)`` and ``4 f`` inside, ``8 f`` of a gated MLP (both branches, the
    activation, the product), ``6 f`` of a fused one.
    """
    split = np.where(x.sequence_parallel > 0, x.tp, 1.0)
    inner = np.where(x.experts > 0, x.active_experts * x.expert_ffn + x.shared_ffn, x.ffn)
    gathered = np.where(f.keeps_gathered > 0, 4 * x.hidden * (1 - 1 / split), 0.0)
    width = (8 + 2 * f.dropout) * x.hidden / split + gathered
    width = width + (4 * x.query + 4 * x.keys + 4 * f.gate * inner) / x.tp
    return x.tokens * f.weight_bytes / 2 * (width + scores)


def _scores(x: Columns) -> Array:
    """Bytes per token of unfused attention: scores, softmax, dropout mask; 0 when fused."""
    return np.where(x.fused_attention > 0, 0.0, 5 * x.heads * x.seq / x.cp / x.tp)


def _kept_bytes(x: Columns, f: Facts) -> Array:
    """Bytes kept per block and microbatch between forward and backward."""
    split = np.where(x.sequence_parallel > 0, x.tp, 1.0)
    bytes_ = x.tokens * f.weight_bytes
    inputs = bytes_ * x.hidden / split
    products = bytes_ * (2 * x.hidden / split + (2 * x.query + x.keys + x.ffn) / x.tp)
    selective = np.where(f.selective_products > 0, products, _saved_bytes(x, f, 0 * x.layers))
    kept = np.where(f.selective > 0, selective, _saved_bytes(x, f, _scores(x)))
    return np.where(f.full > 0, inputs, kept)


def _handed_bytes(x: Columns, f: Facts) -> Array:
    """Bytes of a stage's output, kept per microbatch in flight to start its backward from."""
    split = np.where(x.sequence_parallel > 0, x.tp, 1.0)
    return np.where(x.pp > 1, x.tokens * f.weight_bytes * x.hidden / split, 0.0)


def _working_bytes(x: Columns, f: Facts) -> Array:
    """Bytes of the block being computed: what recompute makes again, and the widest gradients."""
    again = np.where(f.full + f.selective > 0, _saved_bytes(x, f, _scores(x)), 0.0)
    inner = np.where(x.experts > 0, x.active_experts * x.expert_ffn + x.shared_ffn, x.ffn)
    widest = x.tokens * f.weight_bytes * (x.gates * inner / x.tp + x.hidden)
    return again + np.maximum(widest, x.tokens * f.weight_bytes * _scores(x) * 2 / 5)


def _logit_bytes(c: MemoryConstants, x: Columns, f: Facts) -> Array:
    """Bytes of logits, their float32 copies and gradients on the stage with the head.

    With them the gathered input of the projection and its gradient, where these are kept.
    """
    split = np.where(x.sequence_parallel > 0, x.tp, 1.0)
    gathered = f.keeps_gathered * 2 * x.tokens * f.weight_bytes * x.hidden * (1 - 1 / split)
    logits = x.tokens * x.head_share * x.vocab / x.tp
    return peak.loss_bytes(c, logits, f.loss) + gathered


def _in_flight(x: Columns, f: Facts) -> tuple[Array, Array, Array]:
    """Microbatches whose activations are held by the first, second and last stage under 1F1B.

    ``min(m, pp - stage)``; interleaving adds ``(pp - 1) / (pp v)`` (Korthikanti et al. 2022,
    section 4.2.3).
    """
    more = np.where(x.vpp > 1, 1 + (x.pp - 1) / (x.pp * x.vpp), 1.0)
    one = np.ones_like(x.pp)
    last = np.where(x.vpp > 1, more, one)
    return (
        np.minimum(f.micros, x.pp) * more,
        np.minimum(f.micros, np.maximum(x.pp - 1, 1)) * more,
        last,
    )


def _communicators(x: Columns) -> Array:
    """Groups a rank belongs to: all ranks, and one per parallel dimension."""
    dims = (x.dp, x.tp, x.pp, x.cp, x.ep)
    return np.asarray(np.sum([d > 1 for d in dims], axis=0) + (x.devices > 1), float)
