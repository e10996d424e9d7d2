"""What rounding does to one process's own gradients: in narrow precisions the bound of verify.

A plan rounds at other places than one process: between stages, in sums over ranks. Where rounding
errors grow (BatchNorm over few values), each is as far from the exact gradients as one process is,
and they from each other.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.utils import _pytree as pytree

from autopar.executor.dropout import DropoutOff
from autopar.executor.lowering import Context
from autopar.executor.precision import FLOAT32
from autopar.executor.verifying.reference import StepResult, reference_step, relative_norm
from autopar.trace import build_model
from autopar.trace.export import call_model

MOST_ROUNDING = 0.5
"""Beyond, the comparison would say nothing."""
SUM_FACTOR = 4.0
"""A sum in another order may be this many times as far off as float32 is from float64."""


def own_rounding(context: Context, reference: StepResult) -> float:
    """Largest relative difference of gradients that rounding explains, at most one half.

    In a narrow precision twice its distance from float32; else :data:`SUM_FACTOR` times the
    distance of float32 from float64, for the microbatch where that is largest: where errors grow,
    they do so in some batches more than in others.

    Args:
        context: The run.
        reference: One process's step in the plan's precision.
    """
    name = context.precision.name
    if context.precision.narrow is not None:
        exact = reference_step(context, precision=FLOAT32)
        rows = list(reference.gradients.items())
        moved, factor = relative_norm(rows, exact.gradients, complete=True), 2.0
    else:
        pairs = zip(
            _gradients(context, torch.float32), _gradients(context, torch.float64), strict=True
        )
        try:
            moved = max(float((a - b).norm() / b.norm().clamp_min(1e-300)) for a, b in pairs)
        except RuntimeError:  # a model with float32 constants has no float64 form
            return 0.0
        factor = SUM_FACTOR
    what = "the bound for gradients is" if context.precision.narrow else "it may explain"
    context.warnings.append(
        f"rounding to {name} moves one process's own gradients by {moved:.1e}: "
        f"{what} {factor:g} times that, at most {MOST_ROUNDING}"
    )
    return min(factor * moved, MOST_ROUNDING)


def _gradients(context: Context, dtype: torch.dtype) -> Iterator[torch.Tensor]:
    """All gradients of each microbatch of each replica as one float64 vector."""
    task, device = context.task, context.device
    model = build_model(task, seed=context.plan.seed).to(device=device, dtype=dtype)
    for replica in range(context.plan.mesh.replicas):
        for batch in context.data.microbatches(0, replica, device):
            inputs, target = pytree.tree_map_only(
                torch.Tensor, lambda t: t.to(dtype) if t.is_floating_point() else t, batch
            )
            model.zero_grad()
            with DropoutOff():
                torch.autograd.backward(task.loss(call_model(model, inputs), target))
            found = [p.grad for p in model.parameters() if p.grad is not None]
            yield torch.cat([gradient.reshape(-1).double() for gradient in found])
