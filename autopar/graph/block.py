"""Blocks: the coarse chain of the graph that the planner cuts and the profiler measures."""

from __future__ import annotations

from dataclasses import dataclass

from autopar.graph.amount import Amount


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """A contiguous run of ops ``[first_op, stop_op)``; sums of its ops.

    Attributes:
        index: Position in the chain of blocks.
        name: Module path or a range of paths, for people.
        first_op: First op.
        stop_op: One past the last op.
        signature: Hash of the ops' structure and shapes; equal for repeated layers, which are
            measured once.
        parameters: Names of the parameters it reads.
        parameter_bytes: Bytes of those parameters (a tied one counts in each block that reads it).
        saved_bytes: Activation bytes kept for backward.
        boundary_bytes: Bytes of tensors that enter it from earlier blocks: what recompute keeps.
        kernels: Forward kernel launches.
        peak_transient_bytes: Largest op output in the block: workspace on top of what is saved.
    """

    index: int
    name: str
    first_op: int
    stop_op: int
    signature: str
    forward_flop: Amount
    backward_flop: Amount
    forward_bytes: Amount
    backward_bytes: Amount
    saved_bytes: Amount
    boundary_bytes: Amount
    peak_transient_bytes: Amount
    parameters: tuple[str, ...]
    parameter_bytes: float
    kernels: int


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockEdge:
    """A tensor that leaves its block: the unit of pipeline communication.

    A tensor read by several later stages is sent once to each of them.

    Attributes:
        tensor: Index of the op that produced it (unique per tensor).
        producer: Block index.
        consumer: Block index, ``consumer > producer``.
        size_bytes: Forward bytes.
        needs_gradient: True when the same bytes flow back.
    """

    tensor: int
    producer: int
    consumer: int
    size_bytes: Amount
    needs_gradient: bool
