"""Stages of one rank under FSDP2."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise

import torch
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy

from autopar.executor.measuring.traffic import Traffic
from autopar.executor.mesh_groups import MeshGroups
from autopar.executor.sharding.flags import Flags
from autopar.executor.sharding.fsdp import Sharder
from autopar.executor.sharding.split import SplitStage
from autopar.executor.stages.stage import StageProgram, Unit
from autopar.executor.stages.tape import Tape, Values
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
        self, stage: int, leaves: Sequence[torch.Tensor], imports: Values, microbatch: int
    ) -> Values:
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

    def forward(self, leaves: Sequence[torch.Tensor], imports: Values, microbatch: int) -> Values:
        """As :meth:`StageProgram.forward`, weights gathered on the way."""
        result: Values = self._root(self._index, leaves, imports, microbatch)
        return result

    def keep(
        self, leaves: Sequence[torch.Tensor], imports: Values, microbatch: int
    ) -> tuple[Values, Tape]:
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
        sharder = Sharder(
            parameters, whole, groups=groups, device=device, traffic=traffic, policy=policy
        )
        self._standins = sharder.standins
        shards = set(sharder.shards.values())
        own = {
            unit: _only_in(unit, shards, programs)
            for program in programs.values()
            for unit in program.units
            if unit.gathered
        }
        taken = {p for found in own.values() for p in found}
        root = RankModule(programs, [p for p in sharder.shards.values() if p not in taken])
        places = sharder.places(root)
        units = {
            index: [sharder.wrap(unit, own[unit]) for unit in program.units if own.get(unit)]
            for index, program in programs.items()
        }
        # without a pipeline its backward comes right after its forward: a second gather of the
        # same weights would free them for nothing, as fully_shard's own default has it
        top = sharder.wrap(root, list(root.shared), keeps=groups.plan.mesh.pp == 1)
        _set_prefetch(top, units.values())
        self.parameters = sharder.parameters(root, places)
        zero = groups.plan.zero
        self.flags = Flags(top, units, zero=zero, replicas=groups.replicate.size, actions=actions)
        splits = any(action.kind == "backward_weight" for action in actions)
        self.stages: dict[int, ShardedStage | SplitStage] = {
            index: SplitStage(top, program, units[index], self.flags, reshards=zero == 3)
            if splits
            else ShardedStage(root, program)
            for index, program in programs.items()
        }

    @property
    def whole(self) -> Parameters:
        """Parameters that are not shared out; their gradients are still each rank's own."""
        return self._standins.originals

    def after_reduction(self) -> None:
        """Hand the reduced gradients of :attr:`whole` to the optimizer's parameters."""
        self._standins.take_gradients()


def _only_in(
    unit: Unit, shards: set[torch.nn.Parameter], programs: Mapping[int, StageProgram]
) -> list[torch.nn.Parameter]:
    """Parameters that this unit reads and no other op of the rank does, in order."""
    elsewhere = {
        parameter
        for program in programs.values()
        for other in program.units
        if other is not unit
        for parameter in other.parameters()
    }
    return [p for p in unit.parameters() if p in shards and p not in elsewhere]


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
