"""Sharded weights of a model that torch.export cannot capture: the eager module as one unit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist

from autopar.executor.data import Microbatch
from autopar.executor.module_path import ModuleLowering, Whole
from autopar.executor.optimizing.gradients import local
from autopar.executor.sharding.flags import Flags
from autopar.executor.sharding.fsdp import Sharder
from autopar.executor.sharding.optimizers import fit_to_shards
from autopar.schedules import Action


class ShardedModuleLowering(ModuleLowering):
    """The user's own module under FSDP2, all weights gathered and scattered together.

    Which weights a forward uses may depend on the data of a rank, so every rank scatters
    gradients of all weights, zeros where it has none. Weights that no rank used in a first
    forward, and whose gradients a step leaves zero on all ranks, count as unused in that step: the
    optimizer does not see them.

    Args:
        context: The run.

    Raises:
        InputError: Weights that FSDP2 cannot share out together.
    """

    def _wrap(self, whole: Whole) -> None:
        context = self.context
        used = self._nonzero([float(name not in self._unused) for name in whole.parameters])
        doubtful = {n for n, some in zip(whole.parameters, used, strict=True) if not some}
        sharder = Sharder(
            whole.parameters,
            (),
            groups=context.groups,
            device=context.device,
            traffic=context.traffic,
        )
        self._standins = sharder.standins
        places = sharder.places(whole.loss)
        root = sharder.wrap(whole.loss, list(sharder.shards.values()))
        root.set_modules_to_backward_prefetch([root])
        if hasattr(root, "set_reduce_scatter_unused_params"):  # torch 2.13
            root.set_reduce_scatter_unused_params(True)
        elif doubtful or self._ragged:
            context.warnings.append(
                "some weights got no gradient in a first forward; this torch cannot scatter "
                "gradients that only some ranks have, and stops or hangs if that happens"
            )
        self.parameters = sharder.parameters(whole.loss, places)
        self._doubtful = [p for n, p in self.parameters.items() if n in doubtful]
        self._flags = Flags(
            root,
            {0: []},
            zero=context.plan.zero,
            replicas=context.groups.replicate.size,
            actions=[Action("backward", 0, k) for k in range(context.plan.microbatches)],
        )

    def _nonzero(self, figures: Sequence[float]) -> list[bool]:
        """Which of some non-negative figures is not zero on every rank."""
        found = torch.tensor(figures)
        dist.all_reduce(found, op=dist.ReduceOp.MAX, group=self.context.groups.control)
        return [figure > 0 for figure in found.tolist()]

    def reset_optimizer(self) -> None:
        """A fresh optimizer that can step on shards."""
        super().reset_optimizer()
        if self.optimizer is not None:
            warning = fit_to_shards(self.optimizer)
            if warning is not None and warning not in self.context.warnings:
                self.context.warnings.append(warning)

    def gradients(self, microbatches: Sequence[Microbatch]) -> torch.Tensor | None:
        """Forward and backward of each microbatch; FSDP2 scatters when the plan says."""
        self._flags.begin()
        return super().gradients(microbatches)

    def _microbatch(
        self, inputs: Any, target: Any, k: int, weight: float, reducing: bool
    ) -> torch.Tensor:
        self._flags.before_backward(0, k)
        return super()._microbatch(inputs, target, k, weight, reducing)

    def _with_gradients(self) -> list[torch.nn.Parameter]:
        return [*super()._with_gradients(), *self._standins.originals.values()]

    def _synchronise(self, reduced: bool) -> None:
        with self.context.recorder.span("sync"):
            self.synchroniser.reduce(self._standins.originals, ragged=self._ragged)
            self._standins.take_gradients()
            self._forget_unused()
            if self.buffers:
                self.synchroniser.share_buffers(list(self.buffers.values()))

    def _forget_unused(self) -> None:
        if not self._doubtful:
            return
        grads = [p.grad for p in self._doubtful]
        figures = [0.0 if g is None else float(local(g).any()) for g in grads]
        for parameter, some in zip(self._doubtful, self._nonzero(figures), strict=True):
            if not some:
                parameter.grad = None
