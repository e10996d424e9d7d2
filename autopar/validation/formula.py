"""Step time of a transformer run in closed form, over arrays of rows.

The planner prices the ops of a traced graph and simulates the schedule; published rows have
neither, so this module writes the ops of a transformer block down and replaces the simulator by
the closed form of 1F1B. Both use the primitives and constants of :mod:`autopar.calibration`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from autopar.calibration.constants import Constants
from autopar.calibration.kernels import (
    BACKWARD_FLASH,
    BACKWARD_STREAM,
    exposed_sync_seconds,
    flash_seconds,
    gather_ring_seconds,
    gather_seconds,
    gemm_seconds,
    host_seconds,
    layer_collective_seconds,
    phase_seconds,
    unfused_attention_seconds,
)
from autopar.validation.columns import Columns

Array = npt.NDArray[np.float64]

LAUNCHES = 30.0
"""Kernels of a block's forward pass in eager Megatron-style code, counted from its ops."""
TP_LAUNCHES, MOE_LAUNCHES, FALLBACK_LAUNCHES = 4.0, 30.0, 10.0
"""More with tensor parallelism, with routing, with a softmax that is not fused."""
HEAD_LAUNCHES, EMBEDDING_LAUNCHES = 40.0, 15.0
BACKWARD_HOST = 1.6
"""Launches of the backward over the forward pass."""
SMALL_EXPERT_TOKENS = 64
"""Tokens per expert at which a grouped product runs at half its rate."""
OLDER_ATTENTION = 1.7
"""Time of FlashAttention-2 over FlashAttention-3 on Hopper: 1.5 to 2.0 (Shah et al. 2024)."""
LORA_SHARE = 0.003
"""Trainable part of the parameters with adapters."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepParts:
    """Seconds of a step and what they consist of.

    Attributes:
        total_s: The step.
        block_s: Forward, backward and recompute of one block and microbatch.
        head_s: Head and loss of one microbatch.
        pipeline_s: All microbatches through the stages, bubble and messages included.
        sync_s: Exposed gradient exchange.
        optimizer_s: Parameter update.
    """

    total_s: Array
    block_s: Array
    head_s: Array
    pipeline_s: Array
    sync_s: Array
    optimizer_s: Array


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pass:
    """Seconds of one block: products, attention, streams, each forward and backward."""

    gemm: tuple[Array, Array]
    attention: tuple[Array, Array]
    stream: Array
    falls_back: Array


def step_seconds(c: Constants, x: Columns) -> StepParts:
    """Step time of every row.

    Args:
        c: Constants, one entry per row or scalars.
        x: Rows.
    """
    work = _block_work(c, x)
    tp_collective = _tp_collective(c, x)
    forward, backward, exposed_backward = _block_seconds(c, x, work, tp_collective)
    block = forward + backward
    head = _head_seconds(c, x, tp_collective)
    pipeline = _pipeline_seconds(c, x, block, head)
    sync = exposed_sync_seconds(c, _exchange_seconds(c, x), exposed_backward)
    optimizer = _optimizer_seconds(c, x)
    nodes = np.maximum(x.devices / x.devices_per_node, 1)
    spread = 1 + c.straggler * (1 - 1 / nodes)
    total = (pipeline * spread + sync + optimizer) * c.overall + c.step_s
    return StepParts(
        total_s=np.asarray(total),
        block_s=np.asarray(block),
        head_s=head,
        pipeline_s=pipeline,
        sync_s=sync,
        optimizer_s=optimizer,
    )


def _tokens(x: Columns) -> Array:
    """Tokens of a microbatch on one context parallel rank."""
    return x.micro_batch * x.seq / x.cp


def _linear(
    c: Constants, x: Columns, m: Array, n: Array, k: Array, *, half: bool = False
) -> tuple[Array, Array]:
    """Forward, and backward as input and weight gradient (adapters have no weight gradient).

    Args:
        c: Constants.
        x: Rows.
        m: Tokens.
        n: Output width.
        k: Input width.
        half: The product stays in 16 bit where the others run in 8 or 4.
    """
    relative = np.where(
        x.float4 > 0,
        c.fp4_efficiency,
        np.where(
            x.float8 > 0, c.fp8_efficiency * np.where(x.block_scaled > 0, c.mx_efficiency, 1), 1
        ),
    )
    rate = x.peak16_flop_per_s if half else x.peak_flop_per_s * relative
    memory = x.memory_bytes_per_s * c.memory_efficiency

    def product(m: Array, n: Array, k: Array) -> Array:
        return gemm_seconds(
            c, m, n, k, item_bytes=x.item_bytes, peak_flop_per_s=rate,
            memory_bytes_per_s=memory, multiprocessors=x.multiprocessors,
        )  # fmt: skip

    weight = np.where(x.lora > 0, 0.0, 1.0)
    return product(m, n, k), product(m, k, n) + weight * product(n, k, m)


def _sum(*pairs: tuple[Array, Array]) -> tuple[Array, Array]:
    forward, backward = zip(*pairs, strict=True)
    return np.sum(forward, axis=0), np.sum(backward, axis=0)


def _dense_share(x: Columns) -> Array:
    """Part of the blocks that have a dense MLP."""
    return np.where(x.experts > 0, x.dense_layers / x.layers, 1.0)


def _block_work(c: Constants, x: Columns) -> _Pass:
    tokens = _tokens(x)
    projections = _sum(
        _linear(c, x, tokens, (x.query + 2 * x.keys) / x.tp, x.hidden),
        _linear(c, x, tokens, x.hidden, x.query / x.tp),
    )

    def mlp(rows: Array, inner: Array, width: Array) -> tuple[Array, Array]:
        inner = np.maximum(inner, 1)
        return _sum(
            _linear(c, x, rows, x.gates * inner / x.tp, width),
            _linear(c, x, rows, width, inner / x.tp),
        )

    dense = mlp(tokens, x.ffn, x.hidden)
    routed = tokens * np.maximum(x.active_experts, 1)
    per_expert = np.maximum(routed * x.ep / np.maximum(x.experts, 1), 1)
    slowdown = c.expert_slowdown * (1 + SMALL_EXPERT_TOKENS / per_expert)
    expert = mlp(routed, x.expert_ffn, x.expert_width)
    shared = mlp(tokens, x.shared_ffn, x.hidden)
    share = _dense_share(x)
    scale = _printed_flop_scale(x)
    gemm = [
        scale
        * (
            projections[i]
            + share * dense[i]
            + (1 - share) * (slowdown * expert[i] + (x.shared_ffn > 0) * shared[i])
        )
        for i in (0, 1)
    ]
    attention, falls_back = _attention(c, x)
    return _Pass(
        gemm=(gemm[0], gemm[1]),
        attention=attention,
        stream=_stream(c, x),
        falls_back=falls_back,
    )


def _printed_flop_scale(x: Columns) -> Array:
    """Products of a stand-in shape are scaled to the FLOPs per token its page prints."""
    share = _dense_share(x)
    active = x.active_experts * x.expert_ffn * x.expert_width / x.hidden
    width = share * x.ffn + (1 - share) * (active + x.shared_ffn)
    block = 2 * x.hidden * (2 * x.query + 2 * x.keys + width * (1 + x.gates))
    scores = 2 * x.seq * x.query * x.attention_share
    forward = x.layers * (block + scores) + 2 * x.hidden * x.vocab
    return np.where(np.isfinite(x.flop_per_token), x.flop_per_token / (3 * forward), 1.0)


def _attention(c: Constants, x: Columns) -> tuple[tuple[Array, Array], Array]:
    """Seconds forward and backward, and where Megatron's fused softmax refuses the shape.

    Its kernel takes at most 2,048 keys and a multiple of 4 rows of heads (Megatron-LM,
    ``fused_softmax.py: is_kernel_available``). With context parallelism the key ring may be the
    longer part.
    """
    tokens = _tokens(x)
    flop = 4 * tokens * x.seq * x.query / x.tp * x.attention_share
    memory = x.memory_bytes_per_s * c.memory_efficiency
    unaligned = (x.heads / x.tp * x.micro_batch) % 4 != 0
    falls_back = (x.fused_attention < 1) & (unaligned | (x.seq > 2048))
    slower = np.where(x.older_attention > 0, OLDER_ATTENTION, 1.0)
    fused = flash_seconds(c, flop, x.peak16_flop_per_s) * slower
    unfused = unfused_attention_seconds(
        c, flop, tokens * x.seq * x.heads / x.tp,
        head_dim=x.head_dim, contraction=np.minimum(x.head_dim, x.seq), falls_back=falls_back,
        item_bytes=x.item_bytes, peak_flop_per_s=x.peak16_flop_per_s, memory_bytes_per_s=memory,
    )  # fmt: skip
    is_fused = x.fused_attention > 0
    forward = np.where(is_fused, fused, unfused)
    backward = np.where(is_fused, BACKWARD_FLASH * fused, 2 * unfused)
    across = x.tp * x.cp > x.devices_per_node
    rate = np.where(
        across,
        x.inter_bytes_per_s * c.inter_share / x.devices_per_node,
        x.intra_bytes_per_s * c.intra_share,
    )
    ring = np.where(x.cp > 1, 2 * tokens * x.keys / x.tp * x.item_bytes * (x.cp - 1) / rate, 0.0)
    return (np.maximum(forward, ring), np.maximum(backward, 2 * ring)), falls_back


def _stream(c: Constants, x: Columns) -> Array:
    """Forward seconds of norms, residuals, activations, dropout and casts."""
    split = np.where(x.sequence_parallel > 0, x.tp, 1.0)
    dense = _dense_share(x)
    inner = x.gates / 4 * (dense * x.ffn + (1 - dense) * x.shared_ffn)
    routed = x.active_experts * (x.expert_width + x.gates * x.expert_ffn)
    passes = x.hidden / split * c.whole_passes + inner / x.tp * c.split_passes
    passes = passes + (1 - dense) * routed / x.tp * c.expert_passes
    return np.asarray(
        x.item_bytes * _tokens(x) * passes / (x.memory_bytes_per_s * c.memory_efficiency)
    )


def _tp_collective(c: Constants, x: Columns) -> Array:
    """One all-reduce of the activations over the tensor parallel ranks."""
    rate = np.where(
        x.tp > x.devices_per_node,
        x.inter_bytes_per_s * c.inter_share,
        x.intra_bytes_per_s * c.intra_share,
    )
    return layer_collective_seconds(c, _tokens(x) * x.hidden * x.item_bytes, x.tp, rate)


def _expert_exchange(c: Constants, x: Columns) -> Array:
    """The all-to-alls of one pass: a token goes once to every node that holds its experts.

    With sequence parallelism every tensor parallel rank sends its own part of the tokens.
    """
    nodes = np.maximum(x.ep / x.devices_per_node, 1)
    visits = np.maximum(x.active_experts, 1)
    copies = np.where(nodes > 1, np.minimum(visits, nodes), visits)
    item = np.where((x.float8 > 0) | (x.float4 > 0), 1.5, 2.0)
    split = np.where(x.sequence_parallel > 0, x.tp, 1.0)
    size = 2 * _tokens(x) / split * copies * x.expert_width * item * (x.ep - 1) / x.ep
    rate = np.where(
        x.ep > x.devices_per_node,
        x.inter_bytes_per_s * c.inter_share,
        x.intra_bytes_per_s * c.intra_share,
    )
    used = (x.experts > 0) & (x.ep > 1)
    return np.where(used, size / rate * c.expert_exposed, 0.0)


def _block_seconds(
    c: Constants, x: Columns, work: _Pass, tp_collective: Array
) -> tuple[Array, Array, Array]:
    """Forward and backward of a block, and the backward that gradient exchange can hide under."""
    kernels = (
        LAUNCHES
        + TP_LAUNCHES * (x.tp > 1)
        + FALLBACK_LAUNCHES * work.falls_back
        + MOE_LAUNCHES * (x.experts > 0)
    )
    host = host_seconds(c, kernels, x.tp)
    collectives = 2 * tp_collective + _expert_exchange(c, x)
    forward_device = work.gemm[0] + work.attention[0] + work.stream + collectives
    backward_device = (
        work.gemm[1] + work.attention[1] + BACKWARD_STREAM * work.stream + collectives
    )
    forward = phase_seconds(c, forward_device, host)
    selective = np.where(
        x.fused_attention > 0, 0.3 * (work.stream + 0.3 * work.gemm[0]), work.attention[0]
    )
    backward = (
        phase_seconds(c, backward_device, BACKWARD_HOST * host)
        + x.full * forward
        + x.selective * selective
    )
    gather = gather_ring_seconds(
        c, _block_parameters(x) * x.item_bytes, _shard_ranks(x), _shard_rate(c, x)
    )
    sharded = (x.zero == 3) & (_replicas(x) > 1)
    forward = np.where(sharded, gather_seconds(c, forward, gather), forward)
    backward = np.where(sharded, gather_seconds(c, backward, 2 * gather), backward)
    blocks = np.where(x.pp > 1, np.maximum(x.middle, x.last), x.layers)
    return forward, backward, backward * blocks


def _block_parameters(x: Columns) -> Array:
    """Parameters of one block on one rank."""
    share = _dense_share(x)
    experts = x.experts * x.expert_ffn / x.ep * x.expert_width / x.hidden
    held = share * x.ffn + (1 - share) * (experts + x.shared_ffn)
    return x.hidden * (2 * x.query + 2 * x.keys + held * (1 + x.gates)) / x.tp


def _replicas(x: Columns) -> Array:
    """Ranks that hold the same parameters."""
    return np.maximum(x.dp * x.cp, 1)


def _shard_ranks(x: Columns) -> Array:
    """Ranks that share the sharded states: all replicas, or a part of them (HSDP)."""
    return np.minimum(x.zero_ranks, _replicas(x))


def _shard_rate(c: Constants, x: Columns) -> Array:
    """Rate of a ring over the ranks that share sharded states."""
    inside = _shard_ranks(x) <= _in_node(x)
    return np.where(inside, x.intra_bytes_per_s * c.intra_share, _data_rate(c, x))


def _in_node(x: Columns) -> Array:
    """Places of a node for replicas: tensor parallel ranks are placed first."""
    return np.maximum(x.devices_per_node / x.tp, 1)


def _data_rate(c: Constants, x: Columns) -> Array:
    """Rate of a ring over the replicas; rings of different shards share a node's network."""
    inside = np.minimum(_replicas(x), _in_node(x))
    shards = np.minimum(x.devices_per_node, x.devices) / inside
    intra = x.intra_bytes_per_s * c.intra_share
    inter = np.minimum(x.inter_bytes_per_s * c.inter_share / shards, intra)
    return np.where(_replicas(x) / inside > 1.01, inter, intra)


def _head_seconds(c: Constants, x: Columns, tp_collective: Array) -> Array:
    """Vocabulary projection and loss of one microbatch.

    The projection stays in 16 bit in float8 and 4-bit runs (Transformer Engine leaves Megatron's
    output layer out, torchtitan filters it).
    """
    tokens = _tokens(x) * x.head_share
    memory = x.memory_bytes_per_s * c.memory_efficiency
    forward, backward = _linear(c, x, np.maximum(tokens, 1), x.vocab / x.tp, x.hidden, half=True)
    streams = (
        tokens * x.vocab / x.tp * c.logit_bytes + 4 * x.item_bytes * x.vocab * x.hidden / x.tp
    )
    return np.asarray(
        forward
        + backward
        + streams / memory
        + host_seconds(c, HEAD_LAUNCHES, x.tp)
        + 4 * tp_collective
    )


def _embedding_seconds(c: Constants, x: Columns) -> Array:
    memory = x.memory_bytes_per_s * c.memory_efficiency
    size = 6 * _tokens(x) * x.hidden + 2 * x.vocab * x.hidden / x.tp
    return np.asarray(size * x.item_bytes / memory + host_seconds(c, EMBEDDING_LAUNCHES, x.tp))


def _pipeline_seconds(c: Constants, x: Columns, block: Array, head: Array) -> Array:
    """``m * longest + (sum - longest) / vpp`` plus messages and hand-shakes."""
    embedding = _embedding_seconds(c, x)
    staged = x.pp > 1
    first = x.first * block + embedding + np.where(staged, 0.0, head)
    longest = np.where(
        staged, np.maximum(np.maximum(first, x.middle * block), x.last * block + head), first
    )
    total = np.where(staged, x.layers * block + embedding + head, first)
    message = _message_seconds(c, x)
    m = x.microbatches
    steady = c.message_exposed * (m - 1) * x.vpp
    handshake = np.where(staged, c.microbatch_s, 0.0) * (m + x.pp - 1)
    return np.asarray(
        m * longest + (total - longest) / x.vpp + message * (x.pp - 1 + steady) + handshake
    )


def _message_seconds(c: Constants, x: Columns) -> Array:
    """One activation and one gradient between stages; a node's ranks share its network."""
    split = np.where(x.sequence_parallel > 0, x.tp, 1.0)
    across = x.tp * _replicas(x) >= x.devices_per_node
    senders = np.minimum(x.devices_per_node, x.tp * _replicas(x))
    rate = c.message_share * np.where(across, x.inter_bytes_per_s / senders, x.intra_bytes_per_s)
    size = _tokens(x) * x.hidden * x.item_bytes / split
    return np.where(x.pp > 1, 2 * (size / rate + c.collective_latency_s), 0.0)


def _local_parameters(x: Columns) -> Array:
    """Trainable parameters of the fullest rank."""
    count = x.layers * _block_parameters(x) / x.pp + x.vocab * x.hidden / x.tp
    return count * np.where(x.lora > 0, LORA_SHARE, 1.0)


def _exchange_seconds(c: Constants, x: Columns) -> Array:
    """Reduce-scatter of gradients and gather of the updated parameters, once a step."""
    replicas = _replicas(x)
    size = _local_parameters(x) * x.item_bytes
    rate = _data_rate(c, x)
    reduce = (replicas - 1) / replicas * size / rate
    ranks = _shard_ranks(x)
    latency = c.zero_latency_s * np.where(ranks <= _in_node(x), 0.0, ranks)
    sharded = (ranks - 1) / ranks * size / _shard_rate(c, x) + latency
    gather = np.where(x.zero == 1, sharded, reduce)
    copies = replicas / ranks
    across = 2 * (copies - 1) / copies * size / ranks / (rate / np.minimum(ranks, _in_node(x)))
    partly = np.where((x.zero == 3) & (copies > 1.01), across, 0.0)
    return np.where((replicas > 1) & (x.zero < 3), reduce + gather, partly)


def _optimizer_seconds(c: Constants, x: Columns) -> Array:
    ranks = np.where(x.zero >= 1, np.minimum(x.zero_ranks, _replicas(x)), 1.0)
    memory = x.memory_bytes_per_s * c.memory_efficiency
    return np.asarray(_local_parameters(x) / ranks * c.optimizer_bytes / memory)
