"""From a plan to something that trains on this rank: the module path and the graph path."""

from __future__ import annotations

import abc
import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import Store
from torch.distributed.tensor import DTensor

from autopar.core.errors import InputError, TraceError
from autopar.executor.ahead import Ahead, runs_eagerly
from autopar.executor.data import Microbatch, ReplicaData
from autopar.executor.division.keeping import sum_partial
from autopar.executor.dropout import DropoutOff
from autopar.executor.holding import Cut
from autopar.executor.measuring.clock import Recorder
from autopar.executor.measuring.traffic import Traffic
from autopar.executor.mesh_groups import MeshGroups
from autopar.executor.optimizing.clipping import clip
from autopar.executor.optimizing.host_optimizer import HostCopies, States
from autopar.executor.optimizing.learning_rate import make_scheduler
from autopar.executor.optimizing.loss_scale import LossScale
from autopar.executor.precision import PRECISIONS, Precision
from autopar.executor.supported import check_device, check_supported
from autopar.executor.synchronising.registry import make_synchroniser
from autopar.executor.weighing import loss_weights
from autopar.plans import Plan
from autopar.sync import parse_sync
from autopar.tasks import Task

if TYPE_CHECKING:
    from autopar.executor.server.roles import ServerLink
    from autopar.executor.server.synchroniser import ServerSynchroniser


_SKIPPED = (
    "gradients left the range of float16 in some steps: these steps were skipped and the factor "
    "on the loss was halved"
)


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
        store: Where ranks find each other; needed with parameter servers.
        link: The parameter server beside this rank and the token of the run, for plans with
            servers.
        node_size: Ranks on a node.
        ahead: The model and its graph, where the launcher made them before it forked this rank.
        warnings: What was skipped or assumed; ends in the run record.
    """

    plan: Plan
    task: Task
    groups: MeshGroups
    device: torch.device
    data: ReplicaData
    recorder: Recorder
    traffic: Traffic
    store: Store | None = None
    link: ServerLink | None = None
    node_size: int = 1
    ahead: Ahead | None = None
    warnings: list[str] = field(default_factory=list)

    @property
    def precision(self) -> Precision:
        """How the plan computes."""
        return PRECISIONS[self.plan.precision]

    @property
    def microbatch_size(self) -> int:
        """Samples in a microbatch of this rank's replica."""
        return self.plan.replica_microbatch(self.groups.replica)


class Lowering(abc.ABC):
    """A plan made runnable on one rank.

    Attributes:
        parameters: Model name -> parameter, for those this rank holds, in model order.
        buffers: Model name -> buffer, for those a training step writes.
        owned: Names of parameters and buffers of which this pipeline rank is the canonical
            owner (the lowest one that holds them).
        cuts: Name -> which part of the model's own tensor this rank holds; whole if absent.
        partial: Axis -> names of parameters whose gradient is a term over that axis.
    """

    parameters: dict[str, torch.nn.Parameter]
    buffers: dict[str, torch.Tensor]
    owned: frozenset[str]
    cuts: Mapping[str, tuple[Cut, ...]] = MappingProxyType({})
    partial: Mapping[str, frozenset[str]] = MappingProxyType({})

    def __init__(self, context: Context) -> None:
        self.context = context
        self.optimizer: torch.optim.Optimizer | None = None
        self.scheduler: torch.optim.lr_scheduler.LRScheduler | None = None
        self.synchroniser = make_synchroniser(context)
        self.servers: ServerSynchroniser | None = None
        self.scale = LossScale() if context.precision.scales_loss else None
        self._host: HostCopies | None = None

    @property
    def independent(self) -> bool:
        """True when ranks must not wait for each other outside the servers."""
        return self.servers is not None and self.servers.independent

    @abc.abstractmethod
    def gradients(self, microbatches: Sequence[Microbatch]) -> torch.Tensor | None:
        """Forward, backward and the synchroniser's exchange of gradients of one step.

        Each microbatch counts by :meth:`loss_weights`. Afterwards every parameter's ``grad`` is
        what the synchroniser steps with: for all-reduce, the gradient of the mean loss over the
        global batch; with parameter servers or periodic averages that of this replica's own
        samples.

        Returns:
            Loss of this replica on the ranks that know it, else ``None``: the mean over replicas
            is the mean loss over the global batch.
        """

    def loss_weights(self, microbatches: Sequence[Microbatch]) -> list[float]:
        """What each microbatch's loss counts in this replica's; see :mod:`.weighing`."""
        context = self.context
        return loss_weights(
            context.plan, context.task, context.groups, microbatches, context.traffic
        )

    def unscale(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Take the factor on the loss out of gradients, before they are exchanged (collective).

        Args:
            parameters: Those with gradients.
        """
        if self.scale is not None:
            self.scale.unscale(parameters, self.context.device, self.context.traffic)

    def sum_terms(self) -> None:
        """Make whole gradients of those that are terms over ranks of one replica (collective)."""
        if self.partial:
            sum_partial(
                self.partial,
                self.parameters,
                self.context.groups,
                bucket_bytes=self.context.plan.bucket_bytes,
                traffic=self.context.traffic,
            )

    def share_tied(self) -> None:
        """Make copies of a parameter in several stages the same again (collective)."""
        return

    def without_dropout(self) -> AbstractContextManager[Any]:
        """A context in which :meth:`gradients` runs with dropout off."""
        return DropoutOff()

    def reset_optimizer(self) -> None:
        """A fresh optimizer and learning-rate scheduler; nothing is synchronised so far."""
        parameters = list(self.parameters.values())
        if self.context.plan.offload and parameters:
            self._host = self._host or HostCopies(parameters)
            self.optimizer = self._host.make(self.context.task.optimizer)
        else:
            self.optimizer = self.context.task.optimizer(parameters) if parameters else None
        self.scheduler = make_scheduler(self.context.task, self.optimizer)
        if self.scale is not None:
            self.scale = LossScale()
        self.synchroniser.attach(self)

    @property
    def states(self) -> States:
        """State of the optimizer by parameter, wherever it lives; empty without one."""
        if self.optimizer is None:
            return {}
        if self._host is not None:
            return self._host.states(self.optimizer)
        return cast(States, self.optimizer.state)  # its keys are parameters

    @property
    def state_device(self) -> torch.device:
        """Where tensors of optimizer state live."""
        return self.context.device if self._host is None else self._host.host

    def weights_written(self) -> None:
        """Weights are others than the optimizer's last step made: a host copy must follow."""
        if self._host is not None:
            self._host.forget()

    @torch.no_grad()
    def whole(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """A copy of the model's own tensor from this rank's part of it.

        Collective over the ranks that hold parts.

        Args:
            name: Model name.
            tensor: The parameter, its gradient, or anything cut like it.
        """
        if isinstance(tensor, DTensor):
            tensor = tensor.full_tensor()
        result = tensor.detach().clone()
        for cut in reversed(self.cuts.get(name, ())):
            group = self.context.groups.axis(cut.axis)
            parts = [torch.empty_like(result) for _ in range(group.size)]
            dist.all_gather(parts, result.contiguous(), group=group.handle)
            result = cut.join(parts)
        return result

    def parts(self, name: str) -> int:
        """Ranks over which a parameter's elements are spread, each on one of them only."""
        count = math.prod(self.context.groups.axis(c.axis).size for c in self.cuts.get(name, ()))
        parameter = self.parameters[name]
        if isinstance(parameter, DTensor):
            mesh = parameter.device_mesh
            for dim, placement in enumerate(parameter.placements):
                count *= mesh.size(dim) if placement.is_shard() else 1
        return count

    def update(self) -> None:
        """Clip, step, clear gradients: by the servers if there are any."""
        if self.servers is not None:
            self.servers.update()
        else:
            self.update_here()

    def update_here(self) -> None:
        """The same with this rank's own optimizer; a step without finite gradients is skipped."""
        context = self.context
        parameters = list(self.parameters.values())
        if self.scale is None or self.scale.next_step():
            self._step_here()
        elif _SKIPPED not in context.warnings:
            context.warnings.append(_SKIPPED)
        for parameter in parameters:
            parameter.grad = None

    def _step_here(self) -> None:
        context = self.context
        if context.plan.clip_norm is not None:
            clip(self, context.plan.clip_norm)
        if self.optimizer is not None:
            self.optimizer.step()
        if self.scheduler is not None:
            self.scheduler.step()

    def step(self, microbatches: Sequence[Microbatch]) -> torch.Tensor | None:
        """One optimizer step."""
        loss = self.step_gradients(microbatches)
        self.advance()
        return loss

    def step_gradients(self, microbatches: Sequence[Microbatch]) -> torch.Tensor | None:
        """:meth:`gradients` of all microbatches of a step, weights cast once for them."""
        with self.context.precision.cast_once(self.context.device):
            return self.gradients(microbatches)

    def advance(self) -> None:
        """From gradients to the next step's weights, as the synchroniser has it."""
        self.synchroniser.update(self.update)
        self.synchroniser.after_step()


def lower(context: Context) -> Lowering:
    """Build what the plan asks for, joined to its parameter servers if it has any.

    Raises:
        InputError: The plan asks for something the executor does not run.
    """
    check_supported(context.plan)
    check_device(context.plan, context.device.type)
    context.precision.prepare(context.device)
    if context.link is not None and context.task.scheduler is not None:
        raise InputError(
            f"task '{context.task.name}' has a scheduler, the optimizers of plan "
            f"{context.plan.name} are on parameter servers, which keep their learning rate",
            hint="leave the scheduler out, or use another sync mode",
        )
    if context.task.weight is not None and parse_sync(context.plan.sync).semantics == "periodic":
        context.warnings.append(
            f"{context.plan.sync}: task '{context.task.name}' counts items of the whole global "
            "batch, so ranks meet for one number at every step"
        )
    lowering = _path(context)
    if context.link is not None and context.store is not None:
        from autopar.executor.server.synchroniser import ServerSynchroniser

        lowering.servers = ServerSynchroniser(lowering, context.link, context.store)
        if lowering.independent and context.task.weight is not None:
            raise InputError(
                f"task '{context.task.name}' counts items of the whole global batch, ranks of "
                f"plan {context.plan.name} do not wait for each other to sum them",
                hint="leave weight out, or use another sync mode",
            )
    return lowering


def _path(context: Context) -> Lowering:
    """Choose the path: eager module, one traced stage, or a pipeline of stages."""
    if runs_eagerly(context.plan):
        from autopar.executor.module_path import ModuleLowering

        return ModuleLowering(context)
    one_stage = (
        context.plan.mesh.fits(("dp_replicate", "cp", "tp", "ep"))
        and len(context.plan.stages) == 1
    )
    if one_stage:
        from autopar.executor.one_stage import OneStageLowering

        return OneStageLowering(context)
    from autopar.executor.graph_path import GraphLowering

    data_only = context.plan.mesh.fits(("dp_replicate", "dp_shard"))
    if not data_only or context.plan.recomputes:
        return GraphLowering(context)
    try:
        return GraphLowering(context)
    except TraceError as error:
        from autopar.executor.sharding.whole_module import ShardedModuleLowering

        context.warnings.append(f"weights are shared out as one unit: {error.message}")
        return ShardedModuleLowering(context)


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
