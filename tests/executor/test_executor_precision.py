"""Narrow precisions: the numbers of one process in the same precision, and half the bytes."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import executor_helpers as helpers
import executor_models as models
import pytest
import torch
from executor_ranks import on_ranks
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from autopar.core.errors import InputError, TrainingError
from autopar.executor.lowering import Lowering
from autopar.executor.measuring.traffic import Traffic
from autopar.executor.optimizing.loss_scale import LossScale
from autopar.executor.precision import PRECISIONS
from autopar.executor.supported import check_supported
from autopar.plans import Plan
from autopar.tasks import Task
from autopar.trace import TracedTask

SHAPES: dict[str, dict[str, Any]] = {
    "dp2": {"dp": 2, "microbatches": 2},
    "pp2": {"pp": 2, "clip_norm": 0.05},
    "dualpipev": {"pp": 2, "stages": 4, "schedule": "dualpipev"},
    "zero3": {"shard": 2, "zero": 3, "units": 2, "microbatches": 2},
    "zero2 zero_bubble": {
        "shard": 2, "zero": 2, "units": 2, "pp": 2, "schedule": "zero_bubble",
    },
}  # fmt: skip


@cache
def traced(name: str) -> TracedTask:
    return helpers.traced_of(task_of(name))


def task_of(name: str) -> Task:
    return models.unet() if name == "unet" else models.knotted()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("name", "precision"), [("knotted", "bfloat16"), ("unet", "float16")])
def test_equals_one_process(name: str, precision: str, shape: str, tmp_path: Path) -> None:
    task = task_of(name)
    plan = helpers.make_plan(task, traced=traced(name), precision=precision, **SHAPES[shape])
    record = helpers.run(plan, task, tmp_path, verify=True, steps=1, warmup=0)
    assert record.verify is not None
    assert record.verify.passed, record.verify
    assert record.verify.tolerance == PRECISIONS[precision].tolerance
    exact = helpers.run(plan, task, tmp_path / "b", verify=True, steps=1, tolerance=1e-9)
    assert exact.verify is not None
    assert shape == "dp2" or not exact.verify.passed, "nothing was rounded"


@pytest.mark.parametrize("recompute", ["recompute", "selective"])
@pytest.mark.parametrize("schedule", ["1f1b", "zero_bubble"])
def test_recomputation_rounds_the_same(recompute: str, schedule: str, tmp_path: Path) -> None:
    task, graph = task_of("knotted"), traced("knotted")
    (cut,) = helpers.even_cuts(graph, 2)
    base: dict[str, Any] = {
        "traced": graph, "pp": 2, "schedule": schedule, "precision": "bfloat16",
    }  # fmt: skip
    ranges: dict[str, Any] = {recompute: {0: ((0, cut),), 1: ((cut, len(graph.nodes)),)}}
    plans = [helpers.make_plan(task, **base), helpers.make_plan(task, **base, **ranges)]
    curves = [
        helpers.run(plan, task, tmp_path / str(i), steps=3).losses for i, plan in enumerate(plans)
    ]
    assert curves[0] == curves[1]


def test_values_between_stages_and_shards_travel_in_half_the_bytes(tmp_path: Path) -> None:
    task = models.mlp(width=16)
    graph = helpers.traced_of(task)
    pipelines = [
        helpers.make_plan(task, traced=graph, pp=2, precision=p) for p in ("float32", "bfloat16")
    ]
    sent = [
        sum(helpers.run(plan, task, tmp_path / plan.precision).bytes_sent) for plan in pipelines
    ]
    assert sent[1] == sent[0] / 2
    shards = [replace(shards_of(task, graph), precision=p) for p in ("float32", "bfloat16")]
    sent = [sum(helpers.run(p, task, tmp_path / f"s{p.precision}").bytes_sent) for p in shards]
    assert 0.5 * sent[0] < sent[1] < 0.8 * sent[0]  # gathers halve, gradients stay float32


def shards_of(task: Task, graph: TracedTask) -> Plan:
    return helpers.make_plan(task, traced=graph, shard=2, zero=3, units=2)


def steep() -> Task:
    def loss(out: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return (out - target).square().mean() * 300.0

    quiet = models.mlp(lr=3e-4)
    return replace(quiet, name="steep", loss=loss)


@pytest.mark.parametrize(
    "shape", [{"dp": 2}, {"pp": 2, "dp": 2, "schedule": "zero_bubble"}], ids=["dp2", "pp2"]
)
def test_steps_that_overflow_are_skipped(shape: dict[str, Any], tmp_path: Path) -> None:
    task = steep()
    plan = helpers.make_plan(task, precision="float16", **shape)
    record = helpers.run(plan, task, tmp_path, verify=True, steps=8, warmup=0)
    assert record.verify is not None
    assert record.verify.passed, record.verify
    assert any("skipped" in text for text in record.warnings)


def overflow_on_the_second(rank: int) -> tuple[bool, list[float], float]:
    parameter = nn.Parameter(torch.zeros(2))
    parameter.grad = torch.tensor([8.0, float("inf") if rank else 4.0])
    scale, traffic = LossScale(value=4.0), Traffic()
    scale.unscale([parameter], torch.device("cpu"), traffic)
    first = scale.overflowed, parameter.grad.tolist()
    assert not scale.next_step()
    parameter.grad = torch.tensor([8.0, 4.0])
    scale.unscale([parameter], torch.device("cpu"), traffic)
    assert not scale.overflowed
    assert parameter.grad.tolist() == [4.0, 2.0]
    return (*first, traffic.take())


def test_one_rank_that_overflows_stops_all() -> None:
    """And leaves nothing that is not finite for exchanges that keep residuals."""
    found = on_ranks(2, overflow_on_the_second)
    assert found == [(True, [0.0, 0.0], 8.0)] * 2


def test_the_factor_moves_and_is_saved(tmp_path: Path) -> None:
    scale = LossScale(value=4.0, overflowed=True)
    assert not scale.next_step()
    assert (scale.value, scale.good_steps) == (2.0, 0)
    scale.overflowed = False
    for _ in range(2000):
        assert scale.next_step()
    assert (scale.value, scale.good_steps) == (4.0, 0)
    other = LossScale()
    other.restore(scale.state())
    assert other == scale


def test_a_checkpoint_goes_on_with_the_same_factor(tmp_path: Path) -> None:
    task = steep()
    plan = helpers.make_plan(task, precision="float16", dp=2)
    whole = helpers.run(plan, task, tmp_path / "a", steps=12, warmup=0, checkpoint_every=8)
    rest = helpers.run(
        plan, task, tmp_path / "b", steps=4, warmup=0, resume=tmp_path / "a/checkpoints/step-8"
    )
    assert rest.losses == whole.losses[8:]
    assert not any("skipped" in text for text in rest.warnings)


def test_what_does_not_run_is_refused_with_the_reason(tmp_path: Path) -> None:
    task = models.mlp()
    plan = helpers.make_plan(task, precision="float8")
    with pytest.raises(InputError, match="scaled kernels") as caught:
        check_supported(plan)
    assert "bfloat16" in (caught.value.hint or "")
    served = helpers.make_plan(task, precision="float16", dp=2, sync="ps_sync")
    with pytest.raises(InputError, match="skip a step"):
        check_supported(served)
    with pytest.raises((InputError, TrainingError), match="mode of CUDA devices"):
        helpers.run(helpers.make_plan(task, precision="tf32"), task, tmp_path, device="cpu")


class Thin(nn.Module):
    """BatchNorm over two values each, which turns rounding errors into large ones."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(6))
        self.norms = nn.ModuleList(nn.BatchNorm1d(8) for _ in range(6))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer, norm in zip(self.layers, self.norms, strict=True):
            x = x + norm(torch.tanh(layer(x)))
        return x


def test_the_bound_knows_what_rounding_does_to_one_process(tmp_path: Path) -> None:
    task = replace(models.mlp(), name="thin", model=Thin)
    plan = helpers.make_plan(task, pp=2, precision="bfloat16")
    record = helpers.run(plan, task, tmp_path, verify=True, steps=1, warmup=0)
    assert record.verify is not None
    assert record.verify.grad_rel > record.verify.tolerance
    assert record.verify.passed, record.verify
    assert any("rounding to bfloat16" in text for text in record.warnings)


class Casts(TorchDispatchMode):
    """Counts casts of one weight."""

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        self.weight, self.count = weight, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.aten._to_copy.default and args[0] is self.weight
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("once", "casts"), [(True, 1), (False, 3)])
def test_weights_are_cast_once_for_all_microbatches_of_a_step(once: bool, casts: int) -> None:
    precision, cpu = PRECISIONS["bfloat16"], torch.device("cpu")
    layer, inputs = nn.Linear(8, 8), torch.randn(3, 4, 8)
    together = precision.cast_once(cpu) if once else contextlib.nullcontext()
    with Casts(layer.weight) as counted, together:
        for x in inputs:
            with precision.autocast(cpu):
                y = layer(x)
            assert not torch.is_autocast_enabled("cpu")
            y.float().sum().backward()
    assert counted.count == casts
    assert layer.weight.grad is not None
    expected = inputs.bfloat16().float().sum(dim=(0, 1)).expand(8, 8)
    torch.testing.assert_close(layer.weight.grad, expected, rtol=2e-2, atol=2e-2)


def test_a_step_casts_the_weights_that_the_last_one_changed() -> None:
    precision, cpu = PRECISIONS["bfloat16"], torch.device("cpu")
    layer, x = nn.Linear(8, 8, bias=False), torch.randn(4, 8)
    for factor in (1.0, 3.0):
        with torch.no_grad():
            layer.weight.fill_(factor)
        with precision.cast_once(cpu), precision.autocast(cpu):
            y = layer(x)
        torch.testing.assert_close(y[:, 0].float(), factor * x.sum(1), rtol=5e-2, atol=5e-2)


def test_a_lowering_casts_once_around_the_gradients_of_a_step() -> None:
    cpu, seen = torch.device("cpu"), []

    class Three(Lowering):
        def __init__(self) -> None:  # what step_gradients needs of a context, and no more
            self.context = SimpleNamespace(precision=PRECISIONS["bfloat16"], device=cpu)
            self.layer = nn.Linear(8, 8)

        def gradients(self, microbatches):
            for x in microbatches:
                with self.context.precision.autocast(cpu):
                    seen.append(self.layer(x))

    three = Three()
    with Casts(three.layer.weight) as counted:
        Three.step_gradients(three, list(torch.randn(3, 4, 8)))
    assert len(seen) == 3
    assert counted.count == 1
