"""Seconds of a transformer block and of the head: products, attention, streams, collectives."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from autopar.calibration.constants import Constants
from autopar.calibration.kernels import (
    BACKWARD_FLASH,
    BACKWARD_STREAM,
    OLDER_ATTENTION,
    cast_seconds,
    flash_seconds,
    gather_ring_seconds,
    gather_seconds,
    gemm_seconds,
    host_seconds,
    layer_collective_seconds,
    phase_seconds,
    unfused_attention_seconds,
)
from autopar.validation.step_time.columns import Columns
from autopar.validation.step_time.replica_time import block_parameters, shard_ranks, shard_rate

Array = npt.NDArray[np.float64]

LAUNCHES = 30.0
"""Kernels of a block's forward pass in eager Megatron-style code, counted from its ops."""
TP_LAUNCHES, MOE_LAUNCHES, FALLBACK_LAUNCHES = 4.0, 30.0, 10.0
"""More with tensor parallelism, with routing, with a softmax that is not fused."""
HEAD_LAUNCHES = 40.0
BACKWARD_HOST = 1.6
"""Launches of the backward over the forward pass."""
SMALL_EXPERT_TOKENS = 64
"""Tokens per expert at which a grouped product runs at half its rate."""
SCAN_CHUNK, SCAN_STATE, SCAN_PASSES, SCAN_RATE = 256.0, 128.0, 14.0, 0.25
"""State-space layers (Mamba-2, Dao and Gu 2024): tokens of a chunk, width of the state, reads and
writes of the inner width (convolution 3, scan 4, states of chunks 4, gated norm 3), and the part
of the 16-bit peak that the chunks' small products reach (assumed)."""
AUTOCAST_PASSES = 14.0
"""Reads and writes of a layer's tokens, 16-bit wide, that ``torch.autocast`` adds forward: with
float32 embeddings the residual stream is float32. Counted: two norms 4 to 8 and the casts of their
results 6, two additions 6 to 10."""
SCAN_LAUNCHES = 15.0
"""Kernels of a state-space layer besides those of every block (assumed)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockWork:
    """Seconds of one block: products, attention, streams, each forward and backward."""

    gemm: tuple[Array, Array]
    attention: tuple[Array, Array]
    stream: Array
    falls_back: Array


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
    narrow = np.zeros_like(x.float8) if half else (x.float8 + x.float4 > 0)
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

    def cast(elements: Array) -> Array:
        seconds = cast_seconds(c, elements, memory, row_scaled=x.row_scaled)
        return np.asarray(narrow * seconds)

    return (
        product(m, n, k) + cast(m * k),
        product(m, k, n) + weight * product(n, k, m) + cast(m * n),
    )


def _sum(*pairs: tuple[Array, Array]) -> tuple[Array, Array]:
    forward, backward = zip(*pairs, strict=True)
    return np.sum(forward, axis=0), np.sum(backward, axis=0)


def block_work(c: Constants, x: Columns) -> BlockWork:
    """What the ops of a block take, collectives and launches aside."""
    tokens = x.tokens
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
    share = x.dense_share
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
    return BlockWork(
        gemm=(gemm[0], gemm[1]),
        attention=attention,
        stream=_stream(c, x),
        falls_back=falls_back,
    )


def _printed_flop_scale(x: Columns) -> Array:
    """Products of a stand-in shape are scaled to the FLOPs per token its page prints."""
    share = x.dense_share
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
    tokens = x.tokens
    flop = 4 * tokens * x.seq * x.query / x.tp * x.attention_share
    memory = x.memory_bytes_per_s * c.memory_efficiency
    unaligned = (x.heads / x.tp * x.micro_batch) % 4 != 0
    refused = (x.fused_softmax < 1) | unaligned | (x.seq > 2048)
    falls_back = (x.fused_attention < 1) & refused
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
    """Forward seconds of norms, residuals, activations, dropout, casts and state-space scans."""
    split = np.where(x.sequence_parallel > 0, x.tp, 1.0)
    dense = x.dense_share
    inner = x.gates / 4 * (dense * x.ffn + (1 - dense) * x.shared_ffn)
    routed = x.active_experts * (x.expert_width + x.gates * x.expert_ffn)
    whole = c.whole_passes + AUTOCAST_PASSES * x.autocast
    passes = x.hidden / split * whole + inner / x.tp * c.split_passes
    passes = passes + (1 - dense) * routed / x.tp * c.expert_passes
    passes = passes + x.scan_width / x.tp * SCAN_PASSES
    streams = x.item_bytes * x.tokens * passes / (x.memory_bytes_per_s * c.memory_efficiency)
    scan = x.tokens * x.scan_width / x.tp * (SCAN_CHUNK + 4 * SCAN_STATE)
    return np.asarray(streams + scan / (x.peak16_flop_per_s * SCAN_RATE))


def _group_rate(c: Constants, x: Columns, ranks: Array) -> Array:
    """Link rate of a group of neighbours: that of a node's network once they exceed a node."""
    return np.where(
        ranks > x.devices_per_node,
        x.inter_bytes_per_s * c.inter_share,
        x.intra_bytes_per_s * c.intra_share,
    )


def tp_collective(c: Constants, x: Columns) -> Array:
    """One all-reduce of the activations over the tensor parallel ranks."""
    rate = _group_rate(c, x, x.tp)
    whole = layer_collective_seconds(c, x.tokens * x.hidden * x.item_bytes, x.tp, rate)
    return np.asarray(whole * np.where(x.overlaps_tensor > 0, c.tp_overlapped, 1.0))


def _expert_exchange(c: Constants, x: Columns) -> Array:
    """The all-to-alls of one pass: dispatch and combine, at once inside and across nodes.

    A token goes once to every other node that holds one of its experts, ``N (1 - (1 - 1/N)^k)
    (N - 1) / N`` of ``N`` nodes for ``k`` experts drawn evenly, and all devices of a node share
    its network; inside a node it goes to every expert. With sequence parallelism every tensor
    parallel rank sends its own part of the tokens.
    """
    nodes = np.maximum(x.ep / x.devices_per_node, 1)
    visits = np.maximum(x.active_experts, 1)
    item = np.where((x.float8 > 0) | (x.float4 > 0), 1.5, 2.0)
    split = np.where(x.sequence_parallel > 0, x.tp, 1.0)
    copy = 2 * x.tokens / split * x.expert_width * item
    elsewhere = nodes * (1 - (1 - 1 / nodes) ** visits) * (nodes - 1) / nodes
    neighbours = np.minimum(x.ep, x.devices_per_node)
    inside = copy * visits * (neighbours - 1) / neighbours / (x.intra_bytes_per_s * c.intra_share)
    network = x.inter_bytes_per_s * c.inter_share / x.devices_per_node
    seconds = np.maximum(inside, copy * elsewhere / network)
    used = (x.experts > 0) & (x.ep > 1)
    return np.where(used, seconds * c.expert_exposed, 0.0)


def _expert_launches(x: Columns) -> Array:
    """Kernels of routing, and of the two products of every expert on the rank."""
    return np.where(x.experts > 0, MOE_LAUNCHES + 2 * x.experts / x.ep, 0.0)


def block_seconds(
    c: Constants, x: Columns, work: BlockWork, collective: Array
) -> tuple[Array, Array, Array]:
    """Forward and backward of a block, and the backward that gradient exchange can hide under."""
    kernels = (
        LAUNCHES
        + TP_LAUNCHES * (x.tp > 1)
        + FALLBACK_LAUNCHES * work.falls_back
        + _expert_launches(x)
        + SCAN_LAUNCHES * (x.scan_width > 0)
    )
    host = host_seconds(c, kernels, x.tp)
    collectives = 2 * collective + _expert_exchange(c, x)
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
    ranks = shard_ranks(x)
    nodes = np.maximum(ranks * x.tp / x.devices_per_node, 1)
    gather, scatter = (
        gather_ring_seconds(
            c, block_parameters(x) * size, ranks, shard_rate(c, x), nodes=np.minimum(nodes, ranks)
        )
        for size in (x.item_bytes, x.gradient_bytes)
    )
    sharded = (x.zero == 3) & (x.replicas > 1) & (x.gathers_once < 1)
    forward = np.where(sharded, gather_seconds(c, forward, gather), forward)
    backward = np.where(sharded, gather_seconds(c, backward, gather + scatter), backward)
    blocks = np.where(x.pp > 1, np.maximum(x.middle, x.last), x.layers)
    return forward, backward, backward * blocks


def head_seconds(c: Constants, x: Columns, collective: Array) -> Array:
    """Vocabulary projection and loss of one microbatch.

    The projection stays in 16 bit in float8 and 4-bit runs (Transformer Engine leaves Megatron's
    output layer out, torchtitan filters it).
    """
    tokens = x.tokens * x.head_share
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
        + 4 * collective
    )
