"""Recompute without a pipeline: the traced graph as one stage under DDP."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import Any

import torch

from autopar.executor.graph_path import BatchFlattener, model_buffers
from autopar.executor.lowering import check_same_model
from autopar.executor.module_path import ModuleLowering, Whole
from autopar.executor.stage import StageProgram
from autopar.trace import build_model, extract, trace


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


class RecomputeLowering(ModuleLowering):
    """Data parallelism with recompute: DDP's overlap around checkpointed ranges of the graph.

    Args:
        context: The run.

    Raises:
        TraceError: torch.export cannot capture the task.
        InputError: The plan is for another model, or recomputes where it cannot be cut.
    """

    def _build(self) -> Whole:
        context = self.context
        plan = context.plan
        model = build_model(context.task, seed=plan.seed)
        traced = trace(context.task, plan.microbatch_size, model=model)
        check_same_model(plan, traced.fingerprint, len(traced.nodes))
        model.to(context.device)
        (stage,) = plan.stages
        whole = extract(traced, stage.first_op, stage.stop_op)
        self._program = StageProgram(traced, stage, 0, whole, context.device, context.recorder)
        parameters = dict(model.named_parameters())
        read = [parameters[name] for name in self._program.parameters]
        return Whole(
            loss=StageLoss(self._program, read, BatchFlattener(traced)),
            parameters=parameters,
            buffers=model_buffers([self._program]),
        )

    def without_dropout(self) -> AbstractContextManager[Any]:
        """A context in which :meth:`gradients` runs with dropout off, recomputation included."""
        return self._program.without_dropout()
