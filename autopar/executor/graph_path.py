"""The graph path: traced stages under our own stage runner."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, ExitStack
from typing import Any

import torch
import torch.distributed as dist
from torch.utils import _pytree as pytree

from autopar.core.errors import InputError
from autopar.executor.ahead import built
from autopar.executor.data import Microbatch
from autopar.executor.division.divide import divide, translated
from autopar.executor.division.keeping import (
    is_expert,
    keep_parts,
)
from autopar.executor.lowering import Context, Lowering, check_same_model
from autopar.executor.optimizing.gradients import reduce_gradients, size_bytes
from autopar.executor.sharding.optimizers import fit_to_shards
from autopar.executor.sharding.wrap import Sharding
from autopar.executor.stages.mailbox import Channels, lookahead, make_channels
from autopar.executor.stages.routes import Routes
from autopar.executor.stages.runner import Pipeline, Runner
from autopar.executor.stages.stage import Running, StageProgram
from autopar.plans import Plan
from autopar.schedules import SCHEDULES, Action
from autopar.trace import Fragment, TracedTask, extract
from autopar.trace.cleanup import mutated_attributes

_MODEL_PREFIX = "model."


class GraphLowering(Lowering):
    """Pipeline stages cut out of the traced graph, with recompute and data parallelism.

    Every rank builds the seeded model, keeps the parameters its stages read and drops the rest.

    Args:
        context: The run.

    Raises:
        TraceError: torch.export cannot capture the task.
        InputError: The plan is for another model, or cuts it where it cannot be cut.
    """

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        plan, device = context.plan, context.device
        rows = action_rows(plan)
        model, traced = built(context.task, context.microbatch_size, plan.seed, context.ahead)
        check_same_model(plan, traced.fingerprint, len(traced.nodes))
        self._flatten = BatchFlattener(traced)
        divided = divide(traced, context)
        keep_parts(divided, context.groups)
        self.cuts, self.partial = divided.cuts, divided.partial
        traced, stages = divided.traced, translated(divided, plan.stages)
        fragments = [extract(traced, s.first_op, s.stop_op) for s in stages]
        self._check_fragments(fragments)
        routes = Routes(traced, fragments, context.precision)
        self._programs = {
            index: StageProgram(
                traced,
                stage,
                index,
                fragments[index],
                device,
                context.recorder,
                Running(
                    splits=SCHEDULES.load(plan.schedule).splits_backward,
                    sharded=plan.zero > 0,
                    precision=context.precision,
                ),
            )
            for index, stage in enumerate(stages)
            if stage.pp == context.groups.pp
        }
        self._sharding: Sharding | None = None
        self._take_weights(model, fragments, rows[context.groups.pp])
        sharding = self._sharding
        self._runner = Runner(
            programs=self._programs if sharding is None else sharding.stages,
            routes=routes,
            pipeline=Pipeline(
                actions=rows,
                placement=[stage.pp for stage in plan.stages],
                ranks=context.groups.pipeline.ranks,
                me=context.groups.pp,
                microbatches=plan.microbatches,
                ahead=lookahead(device, context.node_size, torch.get_num_threads()),
            ),
            channels=_channels(plan, routes),
            device=device,
            recorder=context.recorder,
            traffic=context.traffic,
            before_backward=None if sharding is None else sharding.flags.before_backward,
        )
        self.reset_optimizer()

    def _check_fragments(self, fragments: Sequence[Fragment]) -> None:
        writers: dict[str, int] = {}
        for stage, fragment in enumerate(fragments):
            for name in mutated_attributes(fragment.module):
                if writers.setdefault(name, stage) != stage:
                    raise InputError(
                        f"buffer '{name}' is written in stages {writers[name]} and {stage}",
                        hint="cut elsewhere: one stage must hold every use of a shared BatchNorm",
                    )

    def _take_weights(
        self,
        model: torch.nn.Module,
        fragments: Sequence[Fragment],
        actions: Sequence[Action],
    ) -> None:
        """Note which parameters and buffers are here, who owns them and who shares them."""
        plan, groups = self.context.plan, self.context.groups
        holders: dict[str, set[int]] = {name: set() for name, _ in model.named_parameters()}
        for stage, fragment in zip(plan.stages, fragments, strict=True):
            for name in fragment.parameters:
                holders[name].add(stage.pp)
        for where in holders.values():
            if not where:
                where.add(0)  # read by no op; kept so that checkpoints are complete
        self.parameters = {
            name: parameter
            for name, parameter in model.named_parameters()
            if groups.pp in holders[name]
        }
        if plan.zero:
            self._shard(actions)
        else:
            for parameter in self.parameters.values():
                parameter.data = parameter.data.to(self.context.device)
        self.buffers = model_buffers(self._programs.values())
        self.owned = frozenset(
            {name for name in self.parameters if min(holders[name]) == groups.pp}
        ) | frozenset(self.buffers)
        homes = {name: tuple(sorted(where)) for name, where in holders.items()}
        self._tied = []
        for home in sorted({home for home in homes.values() if len(home) > 1}):
            group = groups.across_stages(home)
            names = [name for name, h in homes.items() if h == home]
            if groups.pp in home:
                self._tied.append((group, [self.parameters[name] for name in names]))

    def _shard(self, actions: Sequence[Action]) -> None:
        """Put shards of the weights in their place."""
        context = self.context
        self._sharding = Sharding(
            self._programs,
            self.parameters,
            groups=context.groups,
            device=context.device,
            actions=actions,
            traffic=context.traffic,
            whole=frozenset(name for name, cuts in self.cuts.items() if is_expert(cuts)),
            policy=context.precision.sharded(),
        )
        self.parameters = self._sharding.parameters

    def reset_optimizer(self) -> None:
        """A fresh optimizer, one that can step on shards if the weights are."""
        super().reset_optimizer()
        if self._sharding is not None and self.optimizer is not None:
            warning = fit_to_shards(self.optimizer)
            if warning is not None and warning not in self.context.warnings:
                self.context.warnings.append(warning)

    def without_dropout(self) -> AbstractContextManager[Any]:
        """A context in which :meth:`gradients` runs with dropout off, recomputation included."""
        stack = ExitStack()
        for program in self._programs.values():
            stack.enter_context(program.without_dropout())
        return stack

    def gradients(self, microbatches: Sequence[Microbatch]) -> torch.Tensor | None:
        """Run the schedule, then synchronise replicas and sum tied parameters over stages.

        Gradients that are terms over an axis of the division are summed over it in between. Tied
        gradients are summed last: an all-reduce leaves the same bits on all its ranks, so the
        copies of a tied parameter stay identical whatever the buckets were.
        """
        context, sharding = self.context, self._sharding
        if sharding is not None:
            sharding.flags.begin()
        weights = self.loss_weights(microbatches)
        loss = self._runner.step(
            [self._flatten(*batch) for batch in microbatches],
            weights,
            1.0 if self.scale is None else self.scale.value,
        )
        unshared = {} if sharding is None else sharding.whole
        self.unscale([*self.parameters.values(), *unshared.values()])
        with context.recorder.span("sync"):
            self.synchroniser.reduce(self.parameters if sharding is None else sharding.whole)
            if sharding is not None:
                sharding.after_reduction()
            self.sum_terms()
            self.synchroniser.share_buffers(list(self.buffers.values()))
        return loss

    def sum_terms(self) -> None:
        """Terms over axes of the division first, tied parameters last."""
        super().sum_terms()
        for group, parameters in self._tied:
            reduce_gradients(
                parameters,
                group,
                divide=False,
                bucket_bytes=self.context.plan.bucket_bytes,
                traffic=self.context.traffic,
            )

    def share_tied(self) -> None:
        """Give every stage the first one's copy."""
        for group, parameters in self._tied:
            for parameter in parameters:
                dist.broadcast(parameter.data, src=group.ranks[0], group=group.handle)
                self.context.traffic.broadcast(size_bytes([parameter]), group.size, group.position)


def model_buffers(programs: Iterable[StageProgram]) -> dict[str, torch.Tensor]:
    """Model name -> buffer, for buffers that a forward of some programs writes."""
    return {
        name.removeprefix(_MODEL_PREFIX): buffer
        for program in programs
        for name, buffer in program.mutated_buffers().items()
    }


class BatchFlattener:
    """``TracedTask.flatten`` without keeping the traced model alive."""

    def __init__(self, traced: TracedTask) -> None:
        self._spec = traced.spec
        self._name = traced.task.name
        self._shapes = [
            list(node.meta["val"].shape)
            for node in traced.module.graph.nodes
            if node.op == "placeholder" and isinstance(node.meta.get("val"), torch.Tensor)
        ]

    def __call__(self, inputs: object, target: object) -> list[torch.Tensor]:
        """Flat batch tensors in the order the graph takes them.

        Raises:
            InputError: The batch has another structure or other shapes than the traced one.
        """
        leaves, spec = pytree.tree_flatten((inputs, target))
        if spec != self._spec:
            raise InputError(
                f"task '{self._name}' returned a batch of another structure than when traced",
                hint="return the same nesting of tensors for every batch size",
            )
        shapes = [list(leaf.shape) for leaf in leaves]
        if len(shapes) == len(self._shapes) and shapes != self._shapes:
            raise InputError(
                f"a microbatch of task '{self._name}' has tensors of shapes {shapes}, the graph "
                f"was traced with {self._shapes}",
                hint="pad all samples to one length (autopar.data.PadCollate(length=...)), the "
                "same in batch() and dataset",
            )
        return leaves


def action_rows(plan: Plan) -> list[list[Action]]:
    """The schedule's actions by pipeline coordinate of the plan.

    Raises:
        InputError: The schedule cannot run with the plan's numbers, or the plan spreads the
            stages that the schedule puts on one rank over several.
    """
    schedule = SCHEDULES.load(plan.schedule)
    pp, stages = plan.mesh.pp, len(plan.stages)
    problem = schedule.check(pp, stages, plan.microbatches)
    if problem:
        raise InputError(f"plan {plan.name}: {problem}", hint="plan again")
    rows: list[list[Action]] = [[] for _ in range(pp)]
    for row in schedule.actions(pp, stages, plan.microbatches):
        homes = {plan.stages[action.stage].pp for action in row}
        if len(homes) != 1:
            raise InputError(
                f"plan {plan.name}: schedule '{plan.schedule}' needs stages "
                f"{sorted({a.stage for a in row})} on one pipeline rank, the plan has them on "
                f"{sorted(homes)}",
                hint="put stages 0, 1, 2 ... on pipeline ranks "
                + ", ".join(str(schedule.rank_of(s, pp)) for s in range(stages)),
            )
        rows[homes.pop()] = row
    return rows


def _channels(plan: Plan, routes: Routes) -> Channels:
    """Queues for NCCL, which has no tags; gloo needs none."""
    if dist.get_backend() != "nccl":
        return {}
    pairs = []
    mesh = plan.mesh
    for first in mesh.group("dp_replicate", "dp_shard", "cp", "tp", rank=0):
        for route in routes.all:
            ends = [
                mesh.rank(**{**mesh.coordinates(first), "pp": plan.stages[stage].pp})
                for stage in (route.producer, route.consumer)
            ]
            if ends[0] != ends[1]:
                pairs.append((ends[0], ends[1], False))
                pairs += [(ends[1], ends[0], True)] if route.gradient else []
    return make_channels(list(dict.fromkeys(pairs)))
