"""From a plan to something that trains on this rank: the module path and the graph path."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import torch

from autopar.core.errors import InputError
from autopar.executor.clock import Recorder
from autopar.executor.data import Microbatch, ReplicaData
from autopar.executor.dropout import DropoutOff
from autopar.executor.gradients import clip
from autopar.executor.mesh_groups import MeshGroups
from autopar.executor.traffic import Traffic
from autopar.plans import Plan
from autopar.schedules import SCHEDULES
from autopar.tasks import Task


@dataclass(frozen=True, kw_only=True)
class Context:
    """What every part of one rank's run shares.

    Attributes:
        plan: The plan, with overrides of the run options applied.
        task: The task.
        groups: Process groups.
        device: Device of this rank.
        data: Samples.
        recorder: Times.
        traffic: Bytes sent.
        warnings: What was skipped or assumed; ends in the run record.
    """

    plan: Plan
    task: Task
    groups: MeshGroups
    device: torch.device
    data: ReplicaData
    recorder: Recorder
    traffic: Traffic
    warnings: list[str] = field(default_factory=list)


class Lowering(abc.ABC):
    """A plan made runnable on one rank.

    Attributes:
        parameters: Model name -> parameter, for those this rank holds, in model order.
        buffers: Model name -> buffer, for those a training step writes.
        owned: Names of parameters and buffers of which this pipeline rank is the canonical
            owner (the lowest one that holds them).
    """

    parameters: dict[str, torch.nn.Parameter]
    buffers: dict[str, torch.Tensor]
    owned: frozenset[str]

    def __init__(self, context: Context) -> None:
        self.context = context
        self.optimizer: torch.optim.Optimizer | None = None

    @abc.abstractmethod
    def gradients(self, microbatches: Sequence[Microbatch]) -> torch.Tensor | None:
        """Forward, backward and synchronisation of one step.

        Afterwards every parameter's ``grad`` is that of the mean loss over the global batch.

        Returns:
            Mean loss of this replica on the ranks that know it, else ``None``.
        """

    def without_dropout(self) -> AbstractContextManager[Any]:
        """A context in which :meth:`gradients` runs with dropout off."""
        return DropoutOff()

    def reset_optimizer(self) -> None:
        """A fresh optimizer over this rank's parameters."""
        parameters = list(self.parameters.values())
        self.optimizer = self.context.task.optimizer(parameters) if parameters else None

    def update(self) -> None:
        """Clip, step, clear gradients."""
        context = self.context
        parameters = list(self.parameters.values())
        if context.plan.clip_norm is not None:
            clip(
                parameters,
                [p for name, p in self.parameters.items() if name in self.owned],
                context.plan.clip_norm,
                context.groups.pipeline,
                context.traffic,
                context.device,
            )
        if self.optimizer is not None:
            self.optimizer.step()
        for parameter in parameters:
            parameter.grad = None

    def step(self, microbatches: Sequence[Microbatch]) -> torch.Tensor | None:
        """One optimizer step."""
        loss = self.gradients(microbatches)
        with self.context.recorder.span("optimizer"):
            self.update()
        return loss


def lower(context: Context) -> Lowering:
    """Choose the path: eager module, one traced stage, or a pipeline of stages.

    Raises:
        InputError: The plan asks for something the executor does not run.
    """
    check_supported(context.plan)
    if context.plan.mesh.pp == 1 and not context.plan.recomputes:
        from autopar.executor.module_path import ModuleLowering

        return ModuleLowering(context)
    if context.plan.mesh.pp == 1 and len(context.plan.stages) == 1:
        from autopar.executor.recompute_path import RecomputeLowering

        return RecomputeLowering(context)
    from autopar.executor.graph_path import GraphLowering

    return GraphLowering(context)


def check_supported(plan: Plan) -> None:
    """Refuse plans outside dp_replicate x pp, float32, all_reduce.

    Raises:
        InputError: Names the axis or mode.
    """
    if not plan.mesh.fits(("dp_replicate", "pp")):
        extra = {
            axis: degree
            for axis, degree in plan.mesh.to_dict().items()
            if degree > 1 and axis not in ("dp_replicate", "pp")
        }
        raise InputError(
            f"plan {plan.name} uses {extra}, the executor runs dp_replicate and pp",
            hint="plan again with --space runnable",
        )
    selective = any(stage.selective for stage in plan.stages)
    for used, what in (
        (plan.offload, "optimizer state in host memory"),
        (selective, "selective recompute"),
        (not SCHEDULES.load(plan.schedule).runnable, f"schedule '{plan.schedule}'"),
    ):
        if used:
            raise InputError(
                f"plan {plan.name} has {what}, which the executor does not run yet",
                hint="plan again with --space runnable",
            )
    if plan.precision != "float32":
        raise InputError(
            f"plan {plan.name} has precision '{plan.precision}', the executor runs float32",
            hint="set precision to float32 in the plan",
        )
    if plan.sync != "all_reduce":
        raise InputError(
            f"plan {plan.name} has sync mode '{plan.sync}', the executor runs all_reduce",
            hint="plan again with --sync all_reduce",
        )


def check_same_model(plan: Plan, fingerprint: str, op_count: int) -> None:
    """Refuse a plan made for another model.

    Raises:
        InputError: Fingerprint or number of ops differ.
    """
    if (fingerprint, op_count) == (plan.task.fingerprint, plan.task.op_count):
        return
    raise InputError(
        f"plan is for another model: it was made for '{plan.task.name}' with "
        f"{plan.task.op_count} ops (fingerprint {plan.task.fingerprint}), this task has "
        f"{op_count} ops (fingerprint {fingerprint})",
        hint="profile and plan this task again",
    )
