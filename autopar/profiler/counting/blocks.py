"""The chain of blocks over a counted graph."""

from __future__ import annotations

from itertools import pairwise

import torch

from autopar.graph import Amount, Block, BlockEdge, Op
from autopar.profiler.counting.dataflow import CountedGraph, Value
from autopar.profiler.counting.segmentation import BlockPolicy, choose_cuts
from autopar.profiler.counting.signature import signature
from autopar.trace import TracedTask


def build_blocks(
    traced: TracedTask, graph: CountedGraph, policy: BlockPolicy | None = None
) -> tuple[tuple[Block, ...], tuple[BlockEdge, ...]]:
    """Blocks that cover all ops, and the tensors between them.

    Args:
        traced: The task.
        graph: Its counted ops.
        policy: How fine the blocks are.

    Returns:
        The blocks in order; one edge per tensor and later block that reads it.
    """
    known: dict[tuple[int, int], str] = {}

    def sign(first: int, stop: int) -> str:
        if (first, stop) not in known:
            known[first, stop] = signature(traced, graph, first, stop)
        return known[first, stop]

    cuts, names = choose_cuts(traced, graph, sign, policy or BlockPolicy())
    edges = _edges(traced, graph, cuts)
    sizes = {name: p.numel() * p.element_size() for name, p in named_parameters(traced).items()}
    blocks = tuple(
        _block(graph.ops[a:b], index, names.get(a), sign(a, b), edges, sizes, b == cuts[-1])
        for index, (a, b) in enumerate(pairwise(cuts))
    )
    return blocks, edges


def named_parameters(traced: TracedTask) -> dict[str, torch.nn.Parameter]:
    """Model parameter name -> parameter, tied ones once, in model order."""
    return {
        name: traced.module.get_parameter(attribute)
        for attribute, name in traced.parameter_names.items()
    }


def _edges(traced: TracedTask, graph: CountedGraph, cuts: list[int]) -> tuple[BlockEdge, ...]:
    owner = [block for block, (a, b) in enumerate(pairwise(cuts)) for _ in range(a, b)]
    found: dict[tuple[int, int], BlockEdge] = {}
    for edge in graph.edges:
        producer, consumer = owner[edge.producer], owner[edge.consumer]
        value = graph.values[edge.producer]
        if producer == consumer or edge.producer in traced.replicated:
            continue
        if not isinstance(value, Value):
            continue
        before = found.get((edge.producer, consumer))
        found[edge.producer, consumer] = BlockEdge(
            tensor=edge.producer,
            producer=producer,
            consumer=consumer,
            size_bytes=edge.size_bytes,
            needs_gradient=edge.needs_gradient or (before is not None and before.needs_gradient),
        )
    return tuple(found[key] for key in sorted(found))


def _block(
    ops: tuple[Op, ...],
    index: int,
    name: str | None,
    key: str,
    edges: tuple[BlockEdge, ...],
    sizes: dict[str, int],
    is_last: bool,
) -> Block:
    parameters = tuple(dict.fromkeys(p for op in ops for p in op.parameters))
    return Block(
        index=index,
        name=name or _span_name(ops, is_last),
        first_op=ops[0].index,
        stop_op=ops[-1].index + 1,
        signature=key,
        forward_flop=Amount.total([op.forward_flop for op in ops]),
        backward_flop=Amount.total([op.backward_flop for op in ops]),
        forward_bytes=Amount.total([op.forward_bytes for op in ops]),
        backward_bytes=Amount.total([op.backward_bytes for op in ops]),
        saved_bytes=Amount.total([op.saved_bytes for op in ops]),
        boundary_bytes=Amount.total([e.size_bytes for e in edges if e.consumer == index]),
        peak_transient_bytes=_largest([op.output_bytes for op in ops]),
        parameters=parameters,
        parameter_bytes=float(sum(sizes[p] for p in parameters)),
        kernels=sum(op.kernels for op in ops),
    )


def _largest(amounts: list[Amount]) -> Amount:
    return max(amounts, key=lambda a: a.fixed + a.per_sample)


def _span_name(ops: tuple[Op, ...], is_last: bool) -> str:
    """``"wte … drop"``: first and last module of a run, without their common prefix."""
    paths = list(dict.fromkeys(op.module for op in ops if op.module))
    if is_last:
        paths.append("loss")
    if len(paths) < 2:
        return paths[0] if paths else "(model)"
    last = paths[-1].split(".")
    first = paths[0].split(".")
    shared = 0
    while shared < min(len(first), len(last)) - 1 and first[shared] == last[shared]:
        shared += 1
    return f"{paths[0]} … {'.'.join(last[shared:])}"
