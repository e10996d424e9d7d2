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
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from autopar.executor.data import Microbatch
from autopar.executor.dropout import DropoutOff
from autopar.executor.learning_rate import make_scheduler
from autopar.executor.lowering import Context, Lowering
from autopar.executor.precision import FLOAT32, Precision, wide
from autopar.executor.weighing import counted
from autopar.results import VerifyResult
from autopar.trace import build_model
from autopar.trace.export import call_model

Tensors = Mapping[str, torch.Tensor]

_MOST_ROUNDING = 0.5

_SMALLEST_SCALE = 2.0**-14
"""Factor on the loss below which gradients are not finite for another reason than float16."""


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """What one optimizer step made, by model name.

    Attributes:
        loss: Mean loss over the global batch.
        gradients: What is compared with the mean over the global batch; of a plan, as its
            synchroniser says.
        stepped: What the optimizer took, before clipping.
        weights: After the optimizer step.
        buffers: After the step.
        gradient_rms: Root mean square over replicas of the norm of their own gradients.
    """

    loss: float
    gradients: Tensors
    stepped: Tensors
    weights: Tensors
    buffers: Tensors
    gradient_rms: float = 0.0


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
    return result


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
            loss = lowering.gradients(batches)
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


def reference_step(
    context: Context, scale: float = 1.0, precision: Precision | None = None
) -> StepResult:
    """The same optimizer step by the eager model alone, microbatch after microbatch.

    Args:
        context: The run.
        precision: The run's own by default.
        scale: Factor on the loss in backward, taken out of the gradients.
    """
    plan, task, device = context.plan, context.task, context.device
    precision = precision or context.precision
    model = build_model(task, seed=plan.seed).to(device)
    replicas = plan.mesh.replicas
    weights = _weights(context)
    total = 0.0
    first: dict[str, torch.Tensor] = {}
    gradients: dict[str, torch.Tensor] = {}
    squares = 0.0
    initial = {n: b.detach().clone() for n, b in model.named_buffers()}
    for replica in range(replicas):
        _set_buffers(model, initial)
        batches = context.data.microbatches(0, replica, device)
        for (inputs, target), weight in zip(batches, weights[replica], strict=True):
            with DropoutOff(), precision.autocast(device):
                loss = wide(task.loss(call_model(model, inputs), target)) * weight
            torch.autograd.backward(loss * scale)
            total += float(loss.detach())
        if replica == 0:
            first = {n: b.detach().clone() for n, b in model.named_buffers()}
        squares += _take_gradients(model, gradients, 1.0 / scale)
    _set_buffers(model, first)
    return StepResult(
        loss=total,
        gradients=gradients,
        stepped=gradients,
        gradient_rms=math.sqrt(replicas * squares),
        weights=optimizer_step(context, gradients),
        buffers=first,
    )


def _take_gradients(model: torch.nn.Module, into: dict[str, torch.Tensor], factor: float) -> float:
    """Add a replica's share of the mean gradients to a sum; returns the square of its norm."""
    square = 0.0
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            parameter.grad.mul_(factor)
            square += float(parameter.grad.double().square().sum())
            into[name] = into[name] + parameter.grad if name in into else parameter.grad
            parameter.grad = None
    return square


def _weights(context: Context) -> list[list[float]]:
    """What each microbatch of each replica counts in the mean over the global batch."""
    plan, task = context.plan, context.task
    counts = []
    for replica in range(plan.mesh.replicas):
        if task.weight is None:
            counts.append([float(plan.replica_microbatch(replica))] * plan.microbatches)
        else:
            batches = context.data.microbatches(0, replica, context.device)
            counts.append([counted(task, target) for _, target in batches])
    total = sum(map(sum, counts))
    return [[count / total for count in row] for row in counts]


def optimizer_step(context: Context, gradients: Tensors) -> Tensors:
    """The weights that one process makes of some gradients: clipping and one optimizer step."""
    plan, task = context.plan, context.task
    model = build_model(task, seed=plan.seed).to(context.device)
    parameters = dict(model.named_parameters())
    for name, gradient in gradients.items():
        parameters[name].grad = gradient.clone()
    optimizer = task.optimizer(model.parameters())
    make_scheduler(task, optimizer)  # which may set the first learning rate
    if plan.clip_norm is not None:
        torch.nn.utils.clip_grad_norm_(model.parameters(), plan.clip_norm)
    optimizer.step()
    return {name: parameter.detach() for name, parameter in parameters.items()}


def _set_buffers(model: torch.nn.Module, values: Tensors) -> None:
    for name, buffer in model.named_buffers():
        buffer.data.copy_(values[name])


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
        "grad_rel": _relative(found["gradients"], reference.gradients, complete=True),
        "weight_rel": max(_relative(found["weights"], expected, complete=True), spread),
        "buffer_rel": _relative(found["buffers"], reference.buffers, complete=False),
    }
    direct = _relative(found["weights"], reference.weights, complete=True)
    if direct > tolerance >= parts["weight_rel"]:
        context.warnings.append(
            f"after one step the weights differ by {direct:.1e} from those of the eager model's "
            "own gradients: the optimizer amplifies rounding where a gradient is zero"
        )
    allowed = dict.fromkeys(parts, tolerance) | {"grad_rel": tolerance + rounding}
    if given is None and parts["grad_rel"] > allowed["grad_rel"]:
        allowed["grad_rel"] = max(allowed["grad_rel"], _own_rounding(context, reference))
    return VerifyResult(
        passed=all(value <= allowed[name] for name, value in parts.items()),
        tolerance=tolerance,
        grad_tolerance=allowed["grad_rel"],
        note=note,
        **parts,
    )


def _own_rounding(context: Context, reference: StepResult) -> float:
    """Twice what a narrow precision does to one process's own gradients, at most one half.

    A plan rounds at other places than one process: where rounding errors grow (BatchNorm over
    few values), each is as far from the exact gradients as this, and they from each other.
    """
    if context.precision.narrow is None:
        return 0.0
    exact = reference_step(context, precision=FLOAT32)
    moved = _relative(list(reference.gradients.items()), exact.gradients, complete=True)
    context.warnings.append(
        f"rounding to {context.precision.name} moves one process's own gradients by {moved:.1e}: "
        "the bound for gradients is twice that, at most 0.5"
    )
    return min(2 * moved, _MOST_ROUNDING)


def _relative(rows: list[tuple[str, torch.Tensor]], expected: Tensors, *, complete: bool) -> float:
    """sqrt(sum |found - expected|^2 / sum |expected|^2); a missing tensor counts as zeros."""
    difference = norm = 0.0
    names = {name for name, _ in rows}
    for name, tensor in rows:
        value = tensor.double()
        wanted = expected[name].double() if name in expected else torch.zeros_like(value)
        difference += float((value - wanted).square().sum())
        norm += float(wanted.square().sum())
    for name in set(expected) - names if complete else ():
        square = float(expected[name].double().square().sum())
        difference, norm = difference + square, norm + square
    if norm == 0.0:
        return 0.0 if difference == 0.0 else float("inf")
    return float((difference / norm) ** 0.5)


def relative_difference(values: Tensors, expected: Tensors) -> float:
    """Relative norm of the difference of two sets of tensors with the same names."""
    return _relative(list(values.items()), expected, complete=True)
