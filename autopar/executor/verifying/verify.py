"""One step of a plan against the eager model in one process.

Both sides start from the same weights and take the same microbatches. BatchNorm uses the
statistics of each microbatch of each replica, as DDP does, and the buffers of replica 0 are the
ones compared. Dropout is off on both sides: its random numbers belong to a rank and cannot be
matched. Other random ops in a model make the comparison fail, rightly.

Loss, gradients and buffers are compared with the eager model's. Weights are compared with those
that one process's optimizer makes of the same gradients, and those of all replicas with each
other. Taking the eager model's gradients there
would say nothing more and be wrong for Adam, whose first step is ``lr * g / (|g| + eps)``: where
a gradient is zero in exact arithmetic (the bias of attention keys) its sign is rounding noise,
and two correct programs move that weight in opposite directions. When this happens the direct
difference is told in a warning.

Sync modes that are not exact say through their synchroniser what must hold instead; the result's
note tells it. See docs/sync.md.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.distributed as dist

from autopar.core.errors import TrainingError
from autopar.executor.data import Microbatch
from autopar.executor.lowering import Context, Lowering
from autopar.executor.verifying.reference import (
    StepResult,
    optimizer_step,
    reference_step,
    relative_difference,
    relative_norm,
)
from autopar.executor.verifying.rounding import own_rounding
from autopar.results import VerifyResult

_SMALLEST_SCALE = 2.0**-14
"""Factor on the loss below which gradients are not finite for another reason than float16."""


KINDS = ("gradients", "stepped", "weights", "buffers")

Holding = tuple[str, str, torch.Tensor]
"""One copy of a tensor: what it is, a field of :class:`StepResult`; its name; its value."""


def verify(context: Context, lowering: Lowering, tolerance: float | None = None) -> VerifyResult:
    """Compare, then put weights, buffers and optimizer back as they were.

    Collective: every rank calls it and gets the same result.

    Args:
        context: The run.
        lowering: The plan, freshly built.
        tolerance: Largest relative difference to pass; that of the plan's precision by default.

    Raises:
        TrainingError: A side's loss, gradients, weights or buffers are not finite, so that there
            is nothing to compare.
    """
    kept = {n: t.detach().clone() for n, t in _state(lowering).items()}
    torch.manual_seed(context.plan.seed)
    own = _plan_step(context, lowering)
    averaged = lowering.synchroniser.check_average()
    spread = max(_worst(context, averaged), _replica_spread(context, lowering))
    holdings = _collect(context, own)
    report: list[Any] = [None]
    if context.groups.rank == 0:
        synchroniser = lowering.synchroniser
        report[0] = _compare(
            context,
            holdings,
            own.loss,
            spread,
            tolerance,
            synchroniser.bound,
            synchroniser.note,
            scale=1.0 if lowering.scale is None else lowering.scale.value,
        )
    dist.broadcast_object_list(report, src=0, group=context.groups.control)
    with torch.no_grad():
        for name, tensor in _state(lowering).items():
            tensor.data.copy_(kept[name])
    lowering.reset_optimizer()
    result: VerifyResult = report[0]
    _check_finite(context, result)
    return result


def _check_finite(context: Context, found: VerifyResult) -> None:
    parts = {
        "loss": found.loss_rel,
        "gradients": found.grad_rel,
        "weights": found.weight_rel,
        "buffers": found.buffer_rel,
    }
    broken = [name for name, value in parts.items() if not math.isfinite(value)]
    if broken:
        raise TrainingError(
            f"verify cannot compare {', '.join(broken)} of one step in {context.plan.precision}: "
            "they are not finite in the plan or in one process",
            hint="try --precision bfloat16 or float32, or larger microbatches",
        )


def _state(lowering: Lowering) -> dict[str, torch.Tensor]:
    return {**lowering.parameters, **lowering.buffers}


def _plan_step(context: Context, lowering: Lowering) -> StepResult:
    batches = context.data.microbatches(0, context.groups.replica, context.device)
    context.recorder.begin()
    loss = _gradients(lowering, batches)
    if lowering.servers is not None:
        gradients = stepped = _with_servers(context, lowering)
    else:
        live = {n: p.grad for n, p in lowering.parameters.items() if p.grad is not None}
        compared = lowering.synchroniser.compared(live)
        stepped = {n: lowering.whole(n, gradient) for n, gradient in live.items()}
        gradients = stepped
        if compared is not live:
            gradients = {n: lowering.whole(n, tensor) for n, tensor in compared.items()}
        lowering.update()
    return StepResult(
        loss=context.groups.mean_loss(loss),
        gradients=gradients,
        stepped=stepped,
        weights={n: lowering.whole(n, p) for n, p in lowering.parameters.items()},
        buffers={n: lowering.whole(n, b) for n, b in lowering.buffers.items()},
    )


def _gradients(lowering: Lowering, batches: Sequence[Microbatch]) -> torch.Tensor | None:
    """Of one step; again with a smaller factor on the loss while they are not finite."""
    buffers = {n: b.detach().clone() for n, b in lowering.buffers.items()}
    while True:
        with lowering.without_dropout():
            loss = lowering.step_gradients(batches)
        scale = lowering.scale
        if scale is None or not scale.overflowed or scale.value < _SMALLEST_SCALE:
            return loss
        scale.next_step()
        for parameter in lowering.parameters.values():
            parameter.grad = None
        for name, buffer in lowering.buffers.items():
            buffer.data.copy_(buffers[name])


def _with_servers(context: Context, lowering: Lowering) -> dict[str, torch.Tensor]:
    """Mean gradients, after a step that servers made of the replicas' own ones.

    Servers that do not wait for all make another step each time; then the step is this rank's
    own, of the mean.
    """
    assert lowering.servers is not None
    gradients = lowering.servers.average_for_check()
    if lowering.servers.reproducible:
        lowering.update()
        return gradients
    context.warnings.append(
        f"verify compared loss, gradients and buffers; the order of updates under "
        f"'{context.plan.sync}' is another in every run, so the step was taken without servers"
    )
    for name, gradient in gradients.items():
        lowering.parameters[name].grad = gradient.clone()
    lowering.update_here()
    return gradients


def _collect(context: Context, own: StepResult) -> list[Holding]:
    """Every copy in replica 0, on rank 0; empty elsewhere."""
    groups = context.groups
    mine = [
        (kind, name, tensor)
        for kind in KINDS
        if not (kind == "stepped" and own.stepped is own.gradients)
        for name, tensor in getattr(own, kind).items()
    ]
    lists: list[Any] = [None] * groups.world_size
    labels = [(kind, name, tuple(t.shape), t.dtype) for kind, name, t in mine]
    dist.all_gather_object(lists, labels, group=groups.control)
    result = list(mine) if groups.rank == 0 else []
    for rank in groups.plan.mesh.group("pp", rank=0)[1:]:
        if groups.rank == rank:
            for _, _, tensor in mine:
                dist.send(tensor.cpu(), 0, group=groups.control)
        elif groups.rank == 0:
            for kind, name, shape, dtype in lists[rank]:
                buffer = torch.empty(shape, dtype=dtype)
                dist.recv(buffer, rank, group=groups.control)
                result.append((kind, name, buffer.to(context.device)))
    return result


def _replica_spread(context: Context, lowering: Lowering) -> float:
    """Largest relative difference between this rank's weights and its first peer's, anywhere.

    Where weights are averaged, they have been by now.
    """
    groups = context.groups
    worst = 0.0
    if groups.peers.size > 1:
        own = {n: lowering.whole(n, p) for n, p in lowering.parameters.items()}
        theirs = {n: w.clone() for n, w in own.items()}
        for weight in theirs.values():
            dist.broadcast(weight, src=groups.peers.ranks[0], group=groups.peers.handle)
        worst = relative_difference(own, theirs)
    return _worst(context, worst)


def _worst(context: Context, value: float) -> float:
    """The largest value of any rank."""
    worst = torch.tensor([value], dtype=torch.float64)
    dist.all_reduce(worst, op=dist.ReduceOp.MAX, group=context.groups.control)
    return float(worst)


def _compare(
    context: Context,
    holdings: Iterable[Holding],
    loss: float,
    spread: float,
    given: float | None,
    bound: float,
    note: str,
    scale: float,
) -> VerifyResult:
    """Relative norms over all names; every copy of a tied parameter counts."""
    tolerance = context.precision.tolerance if given is None else given
    found: dict[str, list[tuple[str, torch.Tensor]]] = {kind: [] for kind in KINDS}
    for kind, name, tensor in holdings:
        found[kind].append((name, tensor))
    reference = reference_step(context, scale)
    expected = optimizer_step(context, dict(found["stepped"] or found["gradients"]))
    norm = math.sqrt(sum(float(g.double().square().sum()) for g in reference.gradients.values()))
    rounding = bound * reference.gradient_rms / norm if norm else 0.0
    parts = {
        "loss_rel": abs(loss - reference.loss) / max(abs(reference.loss), 1e-30),
        "grad_rel": relative_norm(found["gradients"], reference.gradients, complete=True),
        "weight_rel": max(relative_norm(found["weights"], expected, complete=True), spread),
        "buffer_rel": relative_norm(found["buffers"], reference.buffers, complete=False),
    }
    direct = relative_norm(found["weights"], reference.weights, complete=True)
    if direct > tolerance >= parts["weight_rel"]:
        context.warnings.append(
            f"after one step the weights differ by {direct:.1e} from those of the eager model's "
            "own gradients: the optimizer amplifies rounding where a gradient is zero"
        )
    allowed = dict.fromkeys(parts, tolerance) | {"grad_rel": tolerance + rounding}
    explained = None
    if given is None and parts["grad_rel"] > allowed["grad_rel"]:
        explained = own_rounding(context, reference)
        if context.precision.narrow is not None:
            allowed["grad_rel"] = max(allowed["grad_rel"], explained)
    return VerifyResult(
        passed=all(value <= allowed[name] for name, value in parts.items()),
        tolerance=tolerance,
        grad_tolerance=allowed["grad_rel"],
        note=note,
        rounding_rel=explained,
        **parts,
    )
