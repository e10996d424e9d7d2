"""Optimizer state in host memory must train as state beside the weights does.

Here the device is the CPU too, so its own refusal is lifted: copies, gradients and state are
tensors of their own all the same. What only a GPU can show is marked and skipped without one.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import executor_helpers as helpers
import executor_models as models
import pytest
import torch
from executor_ranks import on_ranks
from torch import nn

import autopar
from autopar.core.errors import InputError
from autopar.executor import supported
from autopar.executor.lowering import Lowering, lower
from autopar.executor.optimizing.gradients import local
from autopar.executor.optimizing.host_optimizer import HOST, HostCopies
from autopar.executor.session import make_context
from autopar.plans import Mesh, Plan
from autopar.tasks import Task
from autopar.trace import TracedTask

KINDS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=0.1),
    "amsgrad": lambda p: torch.optim.Adam(p, lr=1e-2, amsgrad=True),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=1e-2),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=1e-2),
    "one at a time": lambda p: torch.optim.AdamW(p, lr=1e-2, foreach=False),
}


@pytest.fixture
def anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plans with offload run on the CPU as on a device."""
    monkeypatch.setattr(supported, "HOST_STATE_DEVICES", ("cuda", "cpu"))


# the optimizer alone


def weights() -> list[nn.Parameter]:
    """A matrix, its transpose in memory, a scalar, nothing (a short shard), a frozen one."""
    g = torch.Generator().manual_seed(3)
    shapes = [(5, 3), (4, 6), (), (0, 3), (2, 2)]
    found = [nn.Parameter(torch.randn(shape, generator=g)) for shape in shapes]
    found[1].data = found[1].data.t()
    found[4].requires_grad = False
    return found


def give_gradients(parameters: list[nn.Parameter], step: int) -> None:
    """Some in each step; the scalar has none in the second."""
    g = torch.Generator().manual_seed(50 + step)
    for index, parameter in enumerate(parameters[:4]):
        gradient = torch.randn(parameter.shape, generator=g)
        parameter.grad = None if (index, step) == (2, 1) else gradient


def half(optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
    return torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)


@pytest.mark.parametrize("kind", KINDS)
def test_steps_as_beside_the_weights(kind: str) -> None:
    here, there = weights(), weights()
    direct, copies = KINDS[kind](here), HostCopies(there)
    hosted = copies.make(KINDS[kind])
    schedulers = [half(direct), half(hosted)]
    for step in range(4):
        for parameters in (here, there):
            give_gradients(parameters, step)
        direct.step()
        hosted.step()
        for scheduler in schedulers:
            scheduler.step()
        for wanted, found in zip(here, there, strict=True):
            torch.testing.assert_close(found, wanted, rtol=2e-6, atol=1e-7)
    assert copies.downloads == 4, "each trained weight once, when the optimizer was made"
    states = copies.states(hosted)
    for mine, other in zip(here, there, strict=True):
        assert set(states.get(other, {})) == set(direct.state.get(mine, {}))
        for key, value in direct.state.get(mine, {}).items():
            torch.testing.assert_close(states[other][key], value, rtol=2e-6, atol=1e-7)
    kept = {id(p) for group in hosted.param_groups for p in group["params"]}
    assert not kept & {id(p) for p in there}


def test_moves_gradients_down_and_weights_up_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What the price counts: one gradient and one weight per element and step."""
    parameter = nn.Parameter(torch.randn(6, 4))
    hosted = HostCopies([parameter]).make(KINDS["adamw"])
    mode = Copies()
    for _ in range(2):
        parameter.grad = torch.randn(6, 4)
        with mode:
            hosted.step()
    assert mode.elements == 2 * 2 * 24


class Copies(torch.overrides.TorchFunctionMode):
    """Counts elements that ``copy_`` moves."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") == "copy_":
            self.elements += args[0].numel()
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("told", [False, True])
def test_a_weight_written_by_somebody_else_counts(told: bool) -> None:
    here, there = ([nn.Parameter(torch.ones(3))] for _ in range(2))
    direct, copies = KINDS["sgd"](here), HostCopies(there)
    hosted = copies.make(KINDS["sgd"])
    for step in range(3):
        for (parameter,), optimizer in ((here, direct), (there, hosted)):
            parameter.grad = torch.full((3,), 0.1 * step)
            optimizer.step()
            if told:  # through .data: torch does not count it
                parameter.data.clamp_(max=0.99)
            else:
                with torch.no_grad():
                    parameter.clamp_(max=0.99)
        if told:
            copies.forget()
        torch.testing.assert_close(there[0], here[0])


def test_states_go_round(anywhere: None) -> None:
    parameters = weights()
    copies = HostCopies(parameters)
    hosted = copies.make(KINDS["adamw"])
    give_gradients(parameters, 0)
    hosted.step()
    states = copies.states(hosted)
    kept = {p: copy.deepcopy(s) for p, s in states.items()}
    assert len(states) == len(kept) == 4
    states.clear()
    assert len(states) == 0
    assert parameters[0] not in states
    for parameter, state in kept.items():
        states[parameter] = state
    for parameter, state in kept.items():
        assert all(torch.equal(states[parameter][key], value) for key, value in state.items())


# plans

SHAPES: dict[str, dict[str, Any]] = {
    "alone": {"microbatches": 2},
    "dp2": {"dp": 2, "microbatches": 2, "clip_norm": 0.05},
    "zero1": {"shard": 2, "zero": 1, "microbatches": 2, "units": 3},
    "zero2": {"shard": 2, "zero": 2, "microbatches": 2, "units": 3, "clip_norm": 0.05},
    "zero3": {"shard": 2, "zero": 3, "microbatches": 2, "units": 3, "clip_norm": 0.05},
    "hsdp": {"shard": 2, "dp": 2, "zero": 3, "units": 2},
    "tp2": {"mesh": Mesh(tp=2), "microbatches": 2, "clip_norm": 0.05},
    "pp2": {"pp": 2, "clip_norm": 0.05},
    "zero_bubble": {"pp": 2, "schedule": "zero_bubble"},
    "zero3 pp2": {"shard": 2, "zero": 3, "pp": 2, "units": 2, "clip_norm": 0.05},
    "zero2 tp2": {"mesh": Mesh(dp_shard=2, tp=2), "zero": 2, "units": 2},
    "recompute": {"dp": 2, "recompute": {0: ((0, 3),)}},
}


@cache
def traced(name: str) -> TracedTask:
    return helpers.traced_of(task_of(name))


def task_of(name: str) -> Task:
    task = {"mlp": models.mlp, "knotted": models.knotted, "unet": models.unet}[name]()
    return dataclasses.replace(task, scheduler=half)


def plan_of(name: str, shape: str, **changes: Any) -> Plan:
    return helpers.make_plan(task_of(name), traced=traced(name), **SHAPES[shape], **changes)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_plan_trains_as_without(anywhere: None, shape: str, tmp_path: Path) -> None:
    name = "mlp" if "tp2" in shape else "knotted"
    task = task_of(name)
    plain = helpers.run(plan_of(name, shape), task, tmp_path / "a", steps=4)
    plan = plan_of(name, shape, offload=True)
    record = helpers.run(plan, task, tmp_path / "b", steps=4, verify=True)
    assert record.verify is not None
    assert record.verify.passed, record.verify
    assert record.losses == pytest.approx(plain.losses, rel=1e-5)


@pytest.mark.parametrize("shape", ["dp2", "zero3", "pp2"])
@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_narrow_precisions(anywhere: None, shape: str, precision: str, tmp_path: Path) -> None:
    name = "unet" if precision == "float16" else "knotted"  # its mask is too low for float16
    task, curves = task_of(name), []
    for offload in (False, True):
        plan = plan_of(name, shape, offload=offload, precision=precision)
        curves.append(helpers.run(plan, task, tmp_path / str(offload), steps=4).losses)
    assert curves[1] == pytest.approx(curves[0], rel=1e-3)


def test_a_skipped_step_leaves_host_copies_alone(anywhere: None) -> None:
    task = task_of("mlp")
    plan = helpers.make_plan(task, traced=traced("mlp"), precision="float16", offload=True)

    def body(rank: int) -> tuple[bool, list[float]]:
        lowering = lower(make_context(plan, task, torch.device("cpu")))
        before = [p.detach().clone() for p in lowering.parameters.values()]
        assert lowering.scale is not None
        lowering.scale.value = 2.0**40
        batches = lowering.context.data.microbatches(0, 0, torch.device("cpu"))
        lowering.step(batches)
        same = all(map(torch.equal, before, lowering.parameters.values()))
        lowering.scale.value = 1.0
        return same, [float(lowering.step(batches) or 0.0) for _ in range(2)]

    ((same, losses),) = on_ranks(1, body)
    assert same
    assert losses[1] < losses[0]


@pytest.mark.parametrize(
    "sync", ["local_sgd:2", "diloco:2", "post_local_sgd:2:0.5", "hierarchical:2"]
)
def test_averaged_weights_reach_the_host(anywhere: None, sync: str) -> None:
    task = dataclasses.replace(task_of("mlp"), optimizer=KINDS["adamw"])
    ranks = 4 if sync.startswith("hierarchical") else 2

    def trained(offload: bool) -> list[Any]:
        plan = helpers.make_plan(task, traced=traced("mlp"), dp=ranks, sync=sync, offload=offload)

        def body(rank: int) -> list[torch.Tensor]:
            context = make_context(plan, task, torch.device("cpu"), node_size=2)
            lowering = lower(context)
            lowering.synchroniser.begin(0, 6)
            for step in range(6):
                lowering.step(context.data.microbatches(step, rank, torch.device("cpu")))
            lowering.synchroniser.finish()
            return [p.detach().clone() for p in lowering.parameters.values()]

        return on_ranks(ranks, body)

    torch.testing.assert_close(trained(True), trained(False), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("shape", ["zero3", "zero2 tp2"])
def test_shards_and_parts_have_their_state_on_the_host(anywhere: None, shape: str) -> None:
    plan, task = plan_of("knotted", shape, offload=True), task_of("knotted")

    def body(rank: int) -> tuple[int, int, int]:
        lowering = lower(make_context(plan, task, torch.device("cpu")))
        batches = lowering.context.data.microbatches(
            0, lowering.context.groups.replica, torch.device("cpu")
        )
        lowering.step(batches)
        return facts(lowering)

    for held, state, downloads in on_ranks(plan.world_size, body):
        assert state == 2 * held, "two moments of the rank's own shard, no more"
        assert downloads == len(list(task.model().parameters())), "weights once"


def facts(lowering: Lowering) -> tuple[int, int, int]:
    """Elements of weights, of moments, and weights fetched so far."""
    assert lowering._host is not None
    assert lowering.optimizer is not None
    moments = [
        value.numel()
        for state in lowering.optimizer.state.values()
        for value in state.values()
        if value.dim()
    ]
    held = sum(local(p.detach()).numel() for p in lowering.parameters.values())
    return held, sum(moments), lowering._host.downloads


def test_shards_need_an_elementwise_optimizer(anywhere: None, tmp_path: Path) -> None:
    task = dataclasses.replace(
        models.mlp(), optimizer=lambda params: torch.optim.Adafactor(params, lr=1e-2)
    )
    whole = helpers.make_plan(task, dp=2, offload=True)
    assert helpers.run(whole, task, tmp_path / "a", verify=True).verify is not None
    shards = helpers.make_plan(task, shard=2, zero=1, offload=True)
    with pytest.raises(InputError, match="Adafactor is not known to be elementwise"):
        helpers.run(shards, task, tmp_path / "b")


# checkpoints


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (("zero3", True), ("alone", False)),
        (("dp2", False), ("zero1", True)),
        (("tp2", True), ("pp2", True)),
        (("zero2 tp2", True), ("zero2 tp2", True)),
        (("zero3 pp2", True), ("tp2", True)),
    ],
)
def test_checkpoints_go_between_plans(
    anywhere: None, before: tuple[str, bool], after: tuple[str, bool], tmp_path: Path
) -> None:
    task = dataclasses.replace(models.knotted(dropout=0.0), scheduler=half)
    batch = {"global_batch": 8}

    def go(which: tuple[str, bool], out: str, **options: Any) -> tuple[float, ...]:
        shape = {**SHAPES[which[0]], "clip_norm": None, "microbatch_size": 2}
        mesh = shape.get("mesh") or Mesh(
            dp_replicate=shape.get("dp", 1), dp_shard=shape.get("shard", 1), pp=shape.get("pp", 1)
        )
        shape["microbatches"] = batch["global_batch"] // 2 // mesh.replicas
        plan = helpers.make_plan(task, traced=traced("knotted"), offload=which[1], **shape)
        return helpers.run(plan, task, tmp_path / out, warmup=0, **options).losses

    whole = go(before, "whole", steps=5, checkpoint_every=3)
    rest = go(after, "rest", steps=2, resume=tmp_path / "whole" / "checkpoints" / "step-3")
    assert rest == pytest.approx(whole[3:], rel=1e-5)


def test_local_sgd_goes_on_from_its_own_replicas(anywhere: None, tmp_path: Path) -> None:
    task = models.knotted(dropout=0.0)
    plan = helpers.make_plan(
        task, traced=traced("knotted"), dp=2, sync="local_sgd:4", offload=True
    )
    whole = helpers.run(plan, task, tmp_path / "a", warmup=0, steps=6, checkpoint_every=3)
    resume = tmp_path / "a" / "checkpoints" / "step-3"
    rest = helpers.run(plan, task, tmp_path / "b", warmup=0, steps=3, resume=resume)
    assert rest.losses == pytest.approx(whole.losses[3:], rel=1e-6)


# the user's own loop


@pytest.mark.parametrize("shape", ["dp2", "zero3", "tp2"])
def test_own_loop_with_a_clamp_of_its_own(anywhere: None, shape: str, tmp_path: Path) -> None:
    task = models.mlp()
    shapes: dict[str, Any] = {**SHAPES[shape], "clip_norm": None}

    def train(offload: bool) -> list[Any]:
        plan = helpers.make_plan(task, traced=traced("mlp"), offload=offload, **shapes)
        inputs, target = task.batch(plan.global_batch, torch.Generator().manual_seed(1))

        def body(rank: int) -> list[float]:
            torch.manual_seed(0)
            with autopar.parallelize(
                task.model(),
                plan,
                loss=task.loss,
                example=(inputs, target),
                optimizer=KINDS["adamw"],
                scheduler=half,
            ) as session:
                found = []
                for step in range(4):
                    found.append(session.step(*session.part(inputs, target)))
                    with torch.no_grad():
                        for parameter in session._lowering.parameters.values():
                            local(parameter).clamp_(-0.3, 0.3)
                    if step == 1:
                        session.save(tmp_path / str(offload))
                session.load(tmp_path / str(offload))
                return [*found, session.step(*session.part(inputs, target))]

        return on_ranks(plan.world_size, body)

    for with_host, without in zip(train(True), train(False), strict=True):
        assert with_host == pytest.approx(without, rel=1e-6)


# refusals


def test_refused_where_memory_is_the_hosts(tmp_path: Path) -> None:
    task = models.mlp()
    plan = helpers.make_plan(task, traced=traced("mlp"), dp=2, offload=True)
    with pytest.raises(InputError, match="computes on cpu: there is no other memory") as caught:
        helpers.run(plan, task, tmp_path)
    assert "offload" in (caught.value.hint or "")
    supported.check_device(plan, "cuda")


def test_refused_with_parameter_servers() -> None:
    plan = helpers.make_plan(
        models.mlp(), traced=traced("mlp"), dp=2, sync="ps_sync", offload=True
    )
    with pytest.raises(InputError, match="whose servers hold it"):
        supported.check_supported(plan)


# what only a GPU can show

needs_gpu = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="needs a CUDA device: pinned copies to and from it"
)


@needs_gpu
def test_on_a_gpu_state_is_on_the_host_and_copies_are_pinned() -> None:
    parameters = [nn.Parameter(p.detach().cuda(), p.requires_grad) for p in weights()]
    here = [nn.Parameter(p.detach().clone(), p.requires_grad) for p in parameters]
    direct, copies = KINDS["adamw"](here), HostCopies(parameters)
    hosted = copies.make(KINDS["adamw"])
    for step in range(4):
        for some in (here, parameters):
            give_gradients_on(some, step)
        direct.step()
        hosted.step()
    for wanted, found in zip(here, parameters, strict=True):
        torch.testing.assert_close(found, wanted, rtol=2e-6, atol=1e-6)
    for parameter, state in copies.states(hosted).items():
        assert parameter.is_cuda
        assert all(value.device == HOST for value in state.values())
    assert all(p.is_pinned() for g in hosted.param_groups for p in g["params"] if p.requires_grad)


def give_gradients_on(parameters: list[nn.Parameter], step: int) -> None:
    plain = [nn.Parameter(p.detach().cpu()) for p in parameters]
    give_gradients(plain, step)
    for parameter, source in zip(parameters, plain, strict=True):
        parameter.grad = None if source.grad is None else source.grad.to(parameter.device)


@needs_gpu
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_on_a_gpu_a_plan_trains_as_without_and_leaves_memory(
    precision: str, tmp_path: Path
) -> None:
    task = dataclasses.replace(models.mlp(width=512), optimizer=KINDS["adamw"], target=None)
    graph = helpers.traced_of(task)
    records = []
    for offload in (False, True):
        plan = helpers.make_plan(task, traced=graph, precision=precision, offload=offload)

        def body(rank: int, plan: Plan = plan) -> tuple[list[float], int]:
            torch.cuda.reset_peak_memory_stats()
            lowering = lower(make_context(plan, task, torch.device("cuda", 0)))
            batches = lowering.context.data.microbatches(0, 0, torch.device("cuda", 0))
            losses = [float(lowering.step(batches) or 0.0) for _ in range(4)]
            return losses, torch.cuda.memory_allocated()

        records += on_ranks(1, body)
    (plain, beside), (hosted, away) = records
    assert hosted == pytest.approx(plain, rel=1e-5 if precision == "float32" else 1e-2)
    state = 2 * 4 * sum(p.numel() for p in task.model().parameters())
    assert beside - away >= 0.9 * state
