"""Stages of one rank under FSDP2."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

from autopar.core.errors import InputError
from autopar.executor.gradients import size_bytes
from autopar.executor.mesh_groups import MeshGroups
from autopar.executor.sharding.collectives import (
    CountedAllGather,
    CountedReduceScatter,
    ExchangeReduceScatter,
)
from autopar.executor.sharding.flags import Flags
from autopar.executor.sharding.mesh import sharding_mesh
from autopar.executor.sharding.split import SplitStage
from autopar.executor.sharding.standins import Standins
from autopar.executor.stage import StageProgram, Unit
from autopar.executor.tape import Tape
from autopar.executor.traffic import Traffic
from autopar.schedules import Action

Parameters = dict[str, torch.nn.Parameter]


class RankModule(torch.nn.Module):
    """All stages of a rank as one module, the root that FSDP2 wants.

    It holds the weights that no single unit does: those tied across units or stages, those of ops
    between units, those that nothing reads. They are gathered whenever one of the stages runs.

    Args:
        programs: Virtual stage -> program.
        shared: Weights of the root.
    """

    def __init__(
        self, programs: Mapping[int, StageProgram], shared: Sequence[torch.nn.Parameter]
    ) -> None:
        super().__init__()
        self._programs = dict(programs)
        self.shared = torch.nn.ParameterList(shared)
        self.units = torch.nn.ModuleList(unit for p in programs.values() for unit in p.units)

    def forward(
        self,
        stage: int,
        leaves: Sequence[torch.Tensor],
        imports: dict[int, torch.Tensor],
        microbatch: int,
    ) -> dict[int, torch.Tensor]:
        """Exports of a stage, as :meth:`StageProgram.forward` returns them."""
        return self._programs[stage].forward(leaves, imports, microbatch)


class ShardedStage:
    """What the runner calls in place of a :class:`StageProgram`.

    Args:
        root: Holds the stage.
        program: The stage.
    """

    def __init__(self, root: RankModule, program: StageProgram) -> None:
        self.exports = program.exports
        self._index = program.index
        self._root = root

    def forward(
        self, leaves: Sequence[torch.Tensor], imports: dict[int, torch.Tensor], microbatch: int
    ) -> dict[int, torch.Tensor]:
        """As :meth:`StageProgram.forward`, weights gathered on the way."""
        result: dict[int, torch.Tensor] = self._root(self._index, leaves, imports, microbatch)
        return result

    def keep(
        self, leaves: Sequence[torch.Tensor], imports: dict[int, torch.Tensor], microbatch: int
    ) -> tuple[dict[int, torch.Tensor], Tape]:
        """Not called under schedules that run backward in one piece.

        Raises:
            NotImplementedError: Always.
        """
        raise NotImplementedError("schedules that split backward run SplitStage")


class Sharding:
    """Wraps the stages of one rank so that its data ranks share out their weights.

    Args:
        programs: Virtual stage -> program; their weights become shards.
        parameters: Model name -> parameter, all that this rank holds; its part of each where an
            axis cuts them.
        whole: Names of parameters that must not be shared out (other ranks of the group hold
            other tensors under that name).
        groups: Process groups; their plan says what is shared out.
        device: Where the shards go.
        actions: This rank's actions of one step.
        traffic: Counts what is sent.
        policy: Precision in which units are gathered, run and scattered.

    Attributes:
        parameters: Model name -> parameter that the optimizer updates, a DTensor.
        stages: Virtual stage -> what runs it.
        flags: Must be told when a step and each backward start.

    Raises:
        InputError: Weights that FSDP2 cannot share out together.
    """

    def __init__(
        self,
        programs: Mapping[int, StageProgram],
        parameters: Parameters,
        *,
        groups: MeshGroups,
        device: torch.device,
        actions: Sequence[Action],
        traffic: Traffic,
        whole: frozenset[str] = frozenset(),
        policy: MixedPrecisionPolicy | None = None,
    ) -> None:
        zero, mesh = groups.plan.zero, sharding_mesh(groups, device)
        apart = whole | {name for name, p in parameters.items() if p.ndim == 0}
        self._standins = Standins({n: p for n, p in parameters.items() if n in apart}, mesh)
        shards = {n: p for n, p in parameters.items() if n not in apart}
        own = {
            unit: _only_in(unit, shards.values(), programs)
            for program in programs.values()
            for unit in program.units
            if unit.gathered
        }
        taken = {p for found in own.values() for p in found}
        root = RankModule(programs, [p for p in shards.values() if p not in taken])
        places = _places(root, shards)
        for parameter in shards.values():
            if not parameter.is_contiguous():  # fully_shard wants it so
                parameter.data = parameter.data.contiguous()
        settings: dict[str, Any] = {
            "mesh": mesh,
            "reshard_after_forward": zero == 3,
            "mp_policy": policy or MixedPrecisionPolicy(),
        }
        everything = set(parameters.values())
        units: dict[int, list[FSDPModule]] = {index: [] for index in programs}
        for index, program in programs.items():
            for unit in program.units:
                if own.get(unit):
                    units[index].append(_wrap(unit, own[unit], shards, everything, settings))
        rest = list(root.shared)
        top = _wrap(root, rest, shards, everything, settings)
        sharded = {name: root.get_parameter(place) for name, place in places.items()}
        self.parameters = {
            name: sharded[name] if name in sharded else self._standins.parameters[name]
            for name in parameters
        }
        self.flags = Flags(top, units, zero=zero, replicas=groups.replicate.size, actions=actions)
        splits = any(action.kind == "backward_weight" for action in actions)
        self.stages: dict[int, ShardedStage | SplitStage] = {
            index: SplitStage(top, program, units[index], self.flags, reshards=zero == 3)
            if splits
            else ShardedStage(root, program)
            for index, program in programs.items()
        }
        _set_collectives(
            [top, *(unit for found in units.values() for unit in found)], mesh, groups, traffic
        )
        _set_prefetch(top, units.values())

    @property
    def whole(self) -> Parameters:
        """Parameters that are not shared out; their gradients are still each rank's own."""
        return self._standins.originals

    def after_reduction(self) -> None:
        """Hand the reduced gradients of :attr:`whole` to the optimizer's parameters."""
        self._standins.take_gradients()


def _only_in(
    unit: Unit,
    candidates: Any,
    programs: Mapping[int, StageProgram],
) -> list[torch.nn.Parameter]:
    """Parameters that this unit reads and no other op of the rank does, in order."""
    elsewhere = {
        parameter
        for program in programs.values()
        for other in program.units
        if other is not unit
        for parameter in other.parameters()
    }
    known = set(candidates)
    return [p for p in unit.parameters() if p in known and p not in elsewhere]


def _places(root: RankModule, parameters: Parameters) -> dict[str, str]:
    """Model name -> a place in the module tree, which keeps when the parameter is replaced."""
    names = {parameter: name for name, parameter in parameters.items()}
    return {names[p]: place for place, p in root.named_parameters() if p in names}


def _wrap(
    module: torch.nn.Module,
    own: Sequence[torch.nn.Parameter],
    shards: Parameters,
    everything: set[torch.nn.Parameter],
    settings: dict[str, Any],
) -> FSDPModule:
    """Share out some of a module's weights, and drop the whole ones."""
    _check_dtypes(own, shards)
    wrapped = fully_shard(module, ignored_params=everything - set(own), **settings)
    _release(own)
    return wrapped


def _check_dtypes(found: Sequence[torch.nn.Parameter], parameters: Parameters) -> None:
    """FSDP2 gathers and scatters the trained weights of a unit as one flat tensor."""
    first: dict[torch.dtype, torch.nn.Parameter] = {}
    for parameter in found:
        if parameter.requires_grad:
            first.setdefault(parameter.dtype, parameter)
    if len(first) > 1:
        names = {parameter: name for name, parameter in parameters.items()}
        listed = ", ".join(f"'{names[p]}' in {dtype}" for dtype, p in first.items())
        raise InputError(
            f"weights of one unit have several dtypes ({listed}), FSDP2 shards one at a time",
            hint="give the model's weights one dtype, or plan without dp_shard",
        )


def _release(parameters: Sequence[torch.nn.Parameter]) -> None:
    """Drop the whole weights: the model and its graph still refer to these parameters."""
    for parameter in parameters:
        parameter.data = torch.empty(0, dtype=parameter.dtype)


def _set_collectives(
    modules: Sequence[FSDPModule], mesh: DeviceMesh, groups: MeshGroups, traffic: Traffic
) -> None:
    gloo = dist.get_backend(groups.weight_shard.group) == "gloo"
    gather = CountedAllGather(traffic)
    scatter = ExchangeReduceScatter(traffic) if gloo else CountedReduceScatter(traffic)
    replicas = groups.replicate.size

    def count_all_reduce(shard: torch.Tensor) -> None:
        traffic.all_reduce(size_bytes([shard]), replicas)

    for module in modules:
        module.set_custom_all_gather(gather)
        module.set_custom_reduce_scatter(scatter)
        if mesh.ndim == 2:
            module.set_all_reduce_hook(count_all_reduce)
        if gloo:
            # gloo cannot scale inside a collective (PREMUL_SUM), so FSDP2 divides afterwards
            module.set_force_sum_reduction_for_comms(True)
            # FSDP2 overlaps gathers by CUDA streams; on the CPU by asking for futures
            module._set_unshard_async_op(True)


def _set_prefetch(root: FSDPModule, stages: Iterable[Sequence[FSDPModule]]) -> None:
    """Each unit fetches its neighbour, the outermost modules nothing (themselves).

    Left alone, FSDP2 fetches what the last forwards ran before, which is another microbatch's
    unit when several are under way.
    """
    root.set_modules_to_backward_prefetch([root])
    for units in stages:
        for first in units[:1]:
            first.set_modules_to_backward_prefetch([first])
        for earlier, later in pairwise(units):
            earlier.set_modules_to_forward_prefetch([later])
            later.set_modules_to_backward_prefetch([earlier])
