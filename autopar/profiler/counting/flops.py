"""FLOPs of one dispatched kernel: torch's formulas, with the ones that are wrong put right.

``torch.utils.flop_counter`` (2.13) has two gaps that matter for training:

* ``convolution_backward`` ignores ``groups`` in the weight gradient, which over-counts a depthwise
  convolution by its number of channels (EfficientNet-B0 backward by 16.5x in total);
* ``_scaled_dot_product_flash_attention_for_cpu`` and its backward have no formula, so attention on
  a CPU counts as nothing.

Both are corrected here; what the stock counter would have said is kept beside it, so that the
difference can be explained to the last FLOP.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any

import torch
from torch.utils import flop_counter

aten = torch.ops.aten

NOTES: dict[str, str] = {
    "aten.convolution_backward": (
        "torch's counter ignores groups in the weight gradient of grouped convolutions"
    ),
    "aten._scaled_dot_product_flash_attention_for_cpu": (
        "torch's counter has no formula for CPU flash attention; counted like the CUDA kernel"
    ),
    "aten._scaled_dot_product_flash_attention_for_cpu_backward": (
        "torch's counter has no formula for CPU flash attention; counted like the CUDA kernel "
        "(five matrix products, one of them the recomputed scores)"
    ),
}
"""Kernel -> why our count differs from ``FlopCounterMode``."""


def count(
    kernel: Any, args: Sequence[Any], kwargs: Mapping[str, Any], out: Any
) -> tuple[float, float]:
    """FLOPs of a kernel call; a multiply-add is 2.

    Args:
        kernel: The dispatched ``OpOverload``.
        args: Its positional arguments.
        kwargs: Its keyword arguments.
        out: Its result.

    Returns:
        ``(flop, stock_flop)``: ours, and what ``FlopCounterMode`` of this torch counts.
    """
    packet = getattr(kernel, "overloadpacket", kernel)
    formula = flop_counter.flop_registry.get(packet)
    stock = float(formula(*args, **kwargs, out_val=out)) if formula is not None else 0.0
    correction = _CORRECTIONS.get(packet)
    return (correction(args, out) if correction is not None else stock), stock


def is_product(kernel: Any) -> bool:
    """True for a dispatched kernel that computes matrix products: one with FLOPs.

    Args:
        kernel: An ``OpOverload``.
    """
    packet = getattr(kernel, "overloadpacket", kernel)
    return packet in flop_counter.flop_registry or packet in _CORRECTIONS


def _convolution_backward(args: Sequence[Any], out: Any) -> float:
    """Gradients of a convolution, ``groups`` honoured.

    Formula: every multiply-add of the forward pass is one of the input gradient and one of the
    weight gradient: ``2 * n * c_out * (c_in / groups) * prod(kernel) * prod(positions)`` each,
    where positions are the output's (the input's for a transposed convolution).
    """
    grad_out, inputs, weight = args[0], args[1], args[2]
    transposed, mask = args[7], args[10]
    positions = (inputs if transposed else grad_out).shape[2:]
    once: float = 2.0 * inputs.shape[0] * prod(positions) * prod(weight.shape)
    return once * (bool(mask[0]) + bool(mask[1]))


def _flash_for_cpu(args: Sequence[Any], out: Any) -> float:
    query, key, value = (t.shape for t in args[:3])
    return float(flop_counter.sdpa_flop_count(query, key, value))  # type: ignore[no-untyped-call]


def _flash_for_cpu_backward(args: Sequence[Any], out: Any) -> float:
    grad_out, query, key, value = (t.shape for t in args[:4])
    count = flop_counter.sdpa_backward_flop_count
    return float(count(grad_out, query, key, value))  # type: ignore[no-untyped-call]


_CORRECTIONS: dict[Any, Callable[[Sequence[Any], Any], float]] = {
    aten.convolution_backward: _convolution_backward,
    aten._scaled_dot_product_flash_attention_for_cpu: _flash_for_cpu,
    aten._scaled_dot_product_flash_attention_for_cpu_backward: _flash_for_cpu_backward,
}
