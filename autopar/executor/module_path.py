"""The module path: the user's eager model under torch's DistributedDataParallel."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.parallel import DistributedDataParallel

from autopar.core.errors import TraceError
from autopar.executor.data import Microbatch
from autopar.executor.lowering import Context, Lowering, check_same_model
from autopar.executor.optimizing.gradients import size_bytes
from autopar.executor.precision import wide
from autopar.executor.synchronising.base import Hook
from autopar.trace import build_model, trace
from autopar.trace.export import call_model


class EagerLoss(torch.nn.Module):
    """``loss(model(inputs), target)`` of the user's own model.

    Args:
        model: The model.
        loss: The task's loss.
    """

    def __init__(self, model: torch.nn.Module, loss: Callable[[Any, Any], torch.Tensor]) -> None:
        super().__init__()
        self.model = model
        self._loss = loss

    def forward(self, inputs: Any, target: Any, microbatch: int) -> torch.Tensor:
        """Scalar loss of one microbatch."""
        return self._loss(call_model(self.model, inputs), target)


@dataclass(frozen=True, kw_only=True)
class Whole:
    """A whole model on one rank.

    Attributes:
        loss: ``loss(inputs, target, microbatch) -> scalar``.
        parameters: By model name.
        buffers: By model name; those that a forward may write.
        apart: Names of parameters that differ between data ranks (experts): DDP neither gives
            them the values of its first rank nor reduces their gradients.
    """

    loss: torch.nn.Module
    parameters: dict[str, torch.nn.Parameter]
    buffers: dict[str, torch.Tensor]
    apart: frozenset[str] = frozenset()


class ModuleLowering(Lowering):
    """Data parallelism for any ``nn.Module``, captured by torch.export or not.

    DDP reduces gradients while backward runs. Buffers are broadcast from replica 0 at the end of
    each step, where DDP itself would do it before the next forward: same values, but a
    checkpoint taken between steps holds the agreed ones.

    Args:
        context: The run.

    Raises:
        InputError: The plan is for another model.
    """

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        whole = self._build()
        unused, written = self._probe(whole)
        self.parameters = whole.parameters
        self.buffers = {name: whole.buffers[name] for name in written}
        self.owned = frozenset(self.parameters) | frozenset(self.buffers)
        self._used_bytes = size_bytes(
            p
            for name, p in self.parameters.items()
            if p.requires_grad and name not in unused | whole.apart
        )
        self._unused = unused
        self._ragged = bool(unused)
        self._hook: Hook | None = None
        self._parallel: Any = whole.loss
        self._wrap(whole)
        self.reset_optimizer()

    def _wrap(self, whole: Whole) -> None:
        """Let DDP average in backward, where the synchroniser wants that."""
        context, group = self.context, self.synchroniser.ddp_group
        if group is None or group.size == 1:
            return
        hook = self.synchroniser.hook()
        if self.scale is not None and hook is not None:
            return  # what it keeps of one step for the next must not be scaled
        _set_apart(whole)
        with warnings.catch_warnings():
            # torch 2.13 renames the argument; the new name is unknown to 2.11
            warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated")
            self._parallel = DistributedDataParallel(
                whole.loss,
                process_group=group.handle,
                bucket_cap_mb=context.plan.bucket_bytes / 2**20,
                broadcast_buffers=False,
                gradient_as_bucket_view=True,
                find_unused_parameters=self._ragged,
            )
        self._hook = hook
        if self._hook is not None:
            self._parallel.register_comm_hook(None, self._hook)

    def _build(self) -> Whole:
        """The seeded eager model."""
        context = self.context
        if context.groups.rank == 0:
            _check_model(context)
        model = build_model(context.task, seed=context.plan.seed).to(context.device)
        return Whole(
            loss=EagerLoss(model, context.task.loss),
            parameters=dict(model.named_parameters()),
            buffers=dict(model.named_buffers()),
        )

    def _probe(self, whole: Whole) -> tuple[set[str], list[str]]:
        """One forward and backward: parameters without a gradient, and buffers that changed."""
        context = self.context
        before = {name: b.detach().clone() for name, b in whole.buffers.items()}
        inputs, target = context.data.microbatches(0, context.groups.replica, context.device)[0]
        with context.precision.autocast(context.device):
            loss = whole.loss(inputs, target, 0)
        torch.autograd.backward(loss)
        unused = {n for n, p in whole.parameters.items() if p.requires_grad and p.grad is None}
        written = [n for n, b in whole.buffers.items() if not torch.equal(b, before[n])]
        for name, buffer in whole.buffers.items():
            buffer.data.copy_(before[name])
        for parameter in whole.parameters.values():
            parameter.grad = None
        return unused, written

    def gradients(self, microbatches: Sequence[Microbatch]) -> torch.Tensor | None:
        """Forward and backward of each microbatch; DDP reduces during the last backward."""
        losses = []
        weights = self.loss_weights(microbatches)
        last = len(microbatches) - 1
        wrapped = isinstance(self._parallel, DistributedDataParallel)
        reducing = self._reduces_in_backward
        for k, (inputs, target) in enumerate(microbatches):
            hold = wrapped and (k < last or not reducing)
            with self._parallel.no_sync() if hold else contextlib.nullcontext():
                losses.append(self._microbatch(inputs, target, k, weights[k], reducing))
        self.unscale(self._with_gradients())
        if self.context.groups.data.size > 1:
            self._synchronise(reducing)
        return losses[0] if len(losses) == 1 else torch.stack(losses).sum()

    @property
    def _reduces_in_backward(self) -> bool:
        wrapped = isinstance(self._parallel, DistributedDataParallel)
        return wrapped and self.synchroniser.in_backward

    def _with_gradients(self) -> list[torch.nn.Parameter]:
        """Parameters that have gradients after the last backward."""
        return list(self.parameters.values())

    def _synchronise(self, reduced: bool) -> None:
        """What is left after the last backward; DDP's own all-reduce is counted here."""
        context, group = self.context, self.synchroniser.ddp_group
        if reduced and self._hook is None and group is not None:
            context.traffic.all_reduce(self._used_bytes, group.size)
        if not reduced:
            with context.recorder.span("sync"):
                self.synchroniser.reduce(self.parameters, ragged=self._ragged)
        if self.buffers:
            with context.recorder.span("sync"):
                self.synchroniser.share_buffers(list(self.buffers.values()))

    def _microbatch(
        self, inputs: Any, target: Any, k: int, weight: float, reducing: bool
    ) -> torch.Tensor:
        """Forward and backward; returns the weighted loss."""
        recorder = self.context.recorder
        start = recorder.mark()
        with self.context.precision.autocast(self.context.device):
            loss: torch.Tensor = self._parallel(inputs, target, k)
        recorder.add("forward", start, stage=0, microbatch=k)
        loss = wide(loss)
        factor = weight if self.scale is None else weight * self.scale.value
        self._backward(loss, factor, k, reducing)
        return loss.detach() * weight

    def _backward(self, loss: torch.Tensor, factor: float, k: int, reducing: bool) -> None:
        """Backward of a microbatch whose loss counts ``factor``.

        Gradient sync is what backward still waits for at its end.

        The engine runs end-of-backward callbacks in the order they were queued. Ours is queued
        at the first node, before DDP queues its wait for the buckets, so the time between it and
        the return of ``backward`` is the exposed part of the synchronisation.
        """
        recorder = self.context.recorder
        gradient = torch.full_like(loss, factor)
        if not recorder.records:
            torch.autograd.backward(loss, gradient)
            return
        computed: list[Any] = []
        engine = torch.autograd.Variable._execution_engine

        def first_node(_: torch.Tensor) -> None:
            engine.queue_callback(lambda: computed.append(recorder.mark()))

        loss.register_hook(first_node)  # type: ignore[no-untyped-call]
        start = recorder.mark()
        torch.autograd.backward(loss, gradient)
        end = recorder.mark()
        recorder.add_between("backward", start, computed[0], stage=0, microbatch=k)
        if reducing and k == self.context.plan.microbatches - 1:
            recorder.add_between("sync", computed[0], end, stage=-1, microbatch=k)


def _set_apart(whole: Whole) -> None:
    """Tell DDP which parameters to leave alone, by their names in the module it wraps."""
    apart = {id(whole.parameters[name]) for name in whole.apart}
    names = [name for name, p in whole.loss.named_parameters() if id(p) in apart]
    # private, but the only way there is (torch 2.11-2.13)
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(  # type: ignore[no-untyped-call]
        whole.loss, names
    )


def _check_model(context: Context) -> None:
    """Compare the plan's fingerprint with the task's, traced without memory."""
    try:
        traced = trace(context.task, context.plan.microbatch_size, device="meta")
    except TraceError as error:
        context.warnings.append(f"cannot check that the plan is for this model: {error.message}")
        return
    check_same_model(context.plan, traced.fingerprint, len(traced.nodes))
