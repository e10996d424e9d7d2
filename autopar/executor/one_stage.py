"""A plan without a pipeline: the traced graph, divided or recomputed, as one stage under DDP."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch

from autopar.executor.ahead import built
from autopar.executor.data import Microbatch
from autopar.executor.division.divide import divide, translated
from autopar.executor.division.keeping import is_expert, keep_parts
from autopar.executor.graph_path import BatchFlattener, model_buffers
from autopar.executor.lowering import check_same_model
from autopar.executor.module_path import ModuleLowering, Whole
from autopar.executor.stages.stage import Running, StageProgram
from autopar.trace import extract


class StageLoss(torch.nn.Module):
    """A program that holds the whole graph, as a module that DDP can wrap.

    Args:
        program: The stage.
        parameters: Parameters the program reads; DDP reduces these.
        flatten: ``(inputs, target) -> flat batch tensors``.
    """

    def __init__(
        self,
        program: StageProgram,
        parameters: Iterable[torch.nn.Parameter],
        flatten: BatchFlattener,
    ) -> None:
        super().__init__()
        self._held = torch.nn.ParameterList(parameters)
        self._program = program
        self._flatten = flatten

    def forward(self, inputs: Any, target: Any, microbatch: int) -> torch.Tensor:
        """Scalar loss of one microbatch."""
        exports = self._program.forward(self._flatten(inputs, target), {}, microbatch)
        (loss,) = exports.values()
        return loss


class OneStageLowering(ModuleLowering):
    """Data parallelism around one stage: DDP's overlap with tensor parallelism and recompute.

    Args:
        context: The run.

    Raises:
        TraceError: torch.export cannot capture the task.
        InputError: The plan is for another model, divides it as it cannot be divided, or
            recomputes where it cannot be cut.
    """

    def _build(self) -> Whole:
        context = self.context
        plan = context.plan
        model, traced = built(context.task, context.microbatch_size, plan.seed, context.ahead)
        check_same_model(plan, traced.fingerprint, len(traced.nodes))
        divided = divide(traced, context)
        keep_parts(divided, context.groups)
        model.to(context.device)
        self.cuts, self.partial = divided.cuts, divided.partial
        (stage,) = translated(divided, plan.stages)
        whole = extract(divided.traced, stage.first_op, stage.stop_op)
        self._program = StageProgram(
            divided.traced,
            stage,
            0,
            whole,
            context.device,
            context.recorder,
            Running(precision=context.precision),
        )
        parameters = dict(model.named_parameters())
        read = [parameters[name] for name in self._program.parameters]
        return Whole(
            loss=StageLoss(self._program, read, BatchFlattener(traced)),
            parameters=parameters,
            buffers=model_buffers([self._program]),
            apart=self._experts,
        )

    @property
    def _experts(self) -> frozenset[str]:
        return frozenset(name for name, cuts in self.cuts.items() if is_expert(cuts))

    def gradients(self, microbatches: Sequence[Microbatch]) -> torch.Tensor | None:
        """As :class:`ModuleLowering`; then what DDP does not reduce.

        Gradients of experts are averaged over the ranks that hold the same, gradients that are
        terms over an axis are summed over it.
        """
        loss = super().gradients(microbatches)
        if self._experts or self.partial:
            with self.context.recorder.span("sync"):
                if self._reduces_in_backward:  # else it had all parameters already
                    self.synchroniser.reduce(
                        {n: self.parameters[n] for n in sorted(self._experts)}
                    )
                self.sum_terms()
        return loss

    def without_dropout(self) -> AbstractContextManager[Any]:
        """A context in which :meth:`gradients` runs with dropout off, recomputation included."""
        return self._program.without_dropout()
