"""Shared-out weights must train as whole ones do."""

from __future__ import annotations

import dataclasses
import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import executor_helpers as helpers
import executor_models as models
import pytest
import torch
from executor_ranks import on_ranks

from autopar.executor.lowering import lower
from autopar.executor.optimizing.gradients import local
from autopar.executor.session import make_context
from autopar.plans import Mesh
from autopar.tasks import Task
from autopar.tasks.resolve import resolve
from autopar.trace import TracedTask

TASKS: dict[str, Callable[[], Task]] = {
    "mlp": models.mlp,
    "knotted": models.knotted,
    "unet": models.unet,
}


@pytest.fixture(scope="module")
def traces() -> dict[str, TracedTask]:
    return {name: helpers.traced_of(make()) for name, make in TASKS.items()}


SHAPES: dict[str, dict[str, Any]] = {
    "zero1": {"zero": 1, "microbatches": 3, "units": 3},
    "zero2": {"zero": 2, "microbatches": 3, "units": 3},
    "zero3": {"zero": 3, "microbatches": 3, "units": 3, "clip_norm": 0.05},
    "zero3 one unit": {"zero": 3},
    "zero2 replicas": {"zero": 2, "dp": 2, "microbatches": 2, "units": 2},
    "zero1 pp2": {"zero": 1, "pp": 2, "units": 2, "clip_norm": 0.05},
    "zero3 pp2": {"zero": 3, "pp": 2, "units": 2, "clip_norm": 0.05},
    "zero2 interleaved": {
        "zero": 2,
        "pp": 2,
        "stages": 4,
        "schedule": "interleaved",
        "units": 2,
    },
    "zero1 zero_bubble": {"zero": 1, "pp": 2, "units": 2, "schedule": "zero_bubble"},
    "zero3 zbv": {"zero": 3, "pp": 2, "stages": 4, "units": 2, "schedule": "zbv"},
}


@pytest.mark.parametrize(
    ("name", "shape"),
    [*(("knotted", shape) for shape in SHAPES), ("unet", "zero2"), ("unet", "zero3 zbv")],
)
def test_sharded_plan_equals_one_process(
    name: str, shape: str, traces: dict[str, TracedTask], tmp_path: Path
) -> None:
    task = TASKS[name]()
    plan = helpers.make_plan(task, traced=traces[name], shard=2, **SHAPES[shape])
    record = helpers.run(plan, task, tmp_path, verify=True)
    assert record.verify is not None
    assert record.verify.passed, record.verify


@pytest.mark.parametrize(
    ("zero", "pp", "schedule"), [(3, 1, "none"), (1, 1, "none"), (2, 2, "zero_bubble")]
)
def test_recompute_within_and_across_units(
    zero: int, pp: int, schedule: str, traces: dict[str, TracedTask], tmp_path: Path
) -> None:
    """Dropout masks and BatchNorm buffers too: training losses, not one verified step."""
    task, traced = models.knotted(dropout=0.3), traces["knotted"]
    first, second = helpers.even_cuts(traced, 3)
    shape: dict[str, Any] = {"shard": 2, "zero": zero, "pp": pp, "units": 4, "microbatches": 2}
    plan = helpers.make_plan(task, traced=traced, schedule=schedule, **shape)
    ranges = ((first, second),) if pp == 1 else ((0, first),)
    again = helpers.make_plan(
        task, traced=traced, schedule=schedule, recompute={0: ranges}, **shape
    )
    edges = {op for stage in plan.stages for unit in stage.units for op in unit}
    assert not {op for pair in ranges for op in pair} <= edges
    record = helpers.run(again, task, tmp_path / "a", verify=True)
    assert record.verify is not None
    assert record.verify.passed, record.verify
    assert "recompute" in {event.kind for event in record.timeline.events}
    plain = helpers.run(plan, task, tmp_path / "b")
    assert record.losses == pytest.approx(plain.losses, rel=1e-5)


class Odd(torch.nn.Module):
    """A scalar, a row, a frozen, an unread and a transposed weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Linear(8, 7)
        self.scale = torch.nn.Parameter(torch.tensor(1.5))
        self.row = torch.nn.Parameter(torch.rand(1, 7))
        self.frozen = torch.nn.Parameter(torch.rand(7, 5), requires_grad=False)
        self.unread = torch.nn.Parameter(torch.rand(3))
        self.turned = torch.nn.Parameter(torch.rand(5, 8).t())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = torch.tanh(self.first(x) * self.scale + self.row)
        return hidden @ self.frozen @ self.turned.t()


def odd() -> Task:
    return dataclasses.replace(
        models.mlp(),
        name="odd",
        model=Odd,
        optimizer=lambda params: torch.optim.AdamW(params, lr=1e-2),
    )


@pytest.mark.parametrize("zero", [1, 3])
def test_weights_that_cannot_be_shared_out_alike(zero: int, tmp_path: Path) -> None:
    task = odd()
    whole = helpers.make_plan(task, dp=2, microbatches=2)
    plan = helpers.make_plan(task, shard=2, zero=zero, units=3, microbatches=2, clip_norm=0.3)
    record = helpers.run(plan, task, tmp_path / "a", verify=True, steps=4, checkpoint_every=2)
    assert record.verify is not None
    assert record.verify.passed, record.verify
    whole = dataclasses.replace(whole, clip_norm=0.3)
    assert record.losses == pytest.approx(
        helpers.run(whole, task, tmp_path / "b", steps=4).losses, rel=1e-5
    )
    step = tmp_path / "a" / "checkpoints" / "step-2"
    rest = helpers.run(plan, task, tmp_path / "c", steps=2, warmup=0, resume=step)
    assert rest.losses == pytest.approx(record.losses[2:4], rel=1e-6)


OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "adafactor": torch.optim.Adafactor,
    "muon": lambda params: torch.optim.Muon([p for p in params if p.ndim == 2], lr=0.1),
    "nadam": torch.optim.NAdam,
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_any_optimizer_steps_on_shards(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if (
        name == "muon"
    ):  # it orthogonalises in bfloat16, whose rounding depends on the order of sums
        monkeypatch.setattr(torch.Tensor, "bfloat16", lambda tensor: tensor.float().clone())
    task = dataclasses.replace(models.mlp(), optimizer=OPTIMIZERS[name])
    plan = helpers.make_plan(task, shard=2, zero=1, units=2)
    record = helpers.run(plan, task, tmp_path / "a", verify=True, steps=4, checkpoint_every=2)
    assert record.verify is not None
    assert record.verify.passed, record.verify
    whole = helpers.run(helpers.make_plan(task, dp=2), task, tmp_path / "b", steps=4).losses
    assert record.losses == pytest.approx(whole, rel=1e-5)
    step = tmp_path / "a" / "checkpoints" / "step-2"
    rest = helpers.run(plan, task, tmp_path / "c", steps=2, warmup=0, resume=step)
    assert rest.losses == pytest.approx(record.losses[2:4], rel=1e-6)


@pytest.mark.parametrize(("zero", "gathers", "scatters"), [(1, 1, 1), (2, 1, 3), (3, 6, 3)])
def test_bytes_sent_are_those_that_are_priced(
    zero: int, gathers: int, scatters: int, tmp_path: Path
) -> None:
    """Three microbatches; every dimension is even, so nothing is padded."""
    task = models.mlp()
    plan = helpers.make_plan(task, shard=2, dp=2, zero=zero, units=4, microbatches=3)
    record = helpers.run(plan, task, tmp_path)
    weights = 4 * (8 * 8 + 8) * 4
    over_replicas = weights / 2  # an all-reduce of the shards, once: 2 (n-1)/n of them
    expected = (gathers + scatters) * weights / 2 + over_replicas
    assert record.bytes_sent == pytest.approx([expected] * 4)


def test_each_rank_holds_its_share(traces: dict[str, TracedTask]) -> None:
    plan = helpers.make_plan(models.knotted(), traced=traces["knotted"], shard=2, zero=3, units=3)

    def storages() -> dict[int, int]:
        gc.collect()
        return {
            t.untyped_storage().data_ptr(): t.untyped_storage().nbytes()
            for t in gc.get_objects()
            if type(t) in (torch.Tensor, torch.nn.Parameter) and t.device.type == "cpu"
        }

    def held(rank: int) -> tuple[int, int]:
        before = storages()  # what earlier tests left in the forked process
        context = make_context(plan, models.knotted(), torch.device("cpu"))
        lowering = lower(context)
        lowering.step(context.data.microbatches(0, context.groups.replica, context.device))
        states = [s for state in lowering.optimizer.state.values() for s in state.values()]
        kept = {place: size for place, size in storages().items() if place not in before}
        shards = sum(
            local(p).untyped_storage().nbytes() for p in [*lowering.parameters.values(), *states]
        )
        return sum(kept.values()), shards

    whole = sum(p.numel() * 4 for p in models.knotted().model().parameters())
    for kept, shards in on_ranks(2, held):
        assert shards == pytest.approx(3 * whole / 2, rel=0.15)
        assert kept < 1.2 * shards


@pytest.mark.parametrize("zero", [1, 2, 3])
def test_a_model_that_export_cannot_capture(zero: int, tmp_path: Path) -> None:
    """Each microbatch uses one of two layers, and none a third."""

    class Spare(models.Branching):
        def __init__(self) -> None:
            super().__init__()
            self.third = torch.nn.Linear(4, 4)

    task = dataclasses.replace(
        models.branching(),
        model=Spare,
        optimizer=lambda params: torch.optim.AdamW(params, lr=0.1, weight_decay=0.5),
    )
    stand_in = helpers.traced_of(models.mlp())
    plan = helpers.make_plan(
        task, traced=stand_in, shard=2, zero=zero, microbatches=3, clip_norm=0.1
    )
    record = helpers.run(plan, task, tmp_path, verify=True)
    assert record.verify is not None
    assert record.verify.passed, record.verify
    assert any("as one unit" in text for text in record.warnings)


AXES: dict[str, dict[str, Any]] = {
    "tp": {"mesh": Mesh(dp_shard=2, tp=2), "zero": 3},
    "tp sequence": {"mesh": Mesh(dp_shard=2, tp=2), "zero": 2, "sequence_parallel": True},
    "cp": {"mesh": Mesh(dp_shard=2, cp=2), "zero": 3},
    "tp pp": {"mesh": Mesh(dp_shard=2, tp=2, pp=2), "zero": 1},
    "replicas pp": {"mesh": Mesh(dp_replicate=2, dp_shard=2, pp=2), "zero": 3},
    "selective": {"mesh": Mesh(dp_shard=2), "zero": 3, "selective": True},
    "shares": {"mesh": Mesh(dp_shard=2), "zero": 2, "batch_shares": (3, 1)},
}


@pytest.mark.parametrize("shape", AXES)
def test_together_with_other_axes(shape: str, tmp_path: Path) -> None:
    """A GPT with tied weights; clipped."""
    pytest.importorskip("transformers")
    task = resolve("zoo:gpt?layers=2&hidden=16&heads=2&vocab=32&seq=8")
    traced = helpers.traced_of(task)
    options = dict(AXES[shape])
    if options.pop("selective", False):
        options["selective"] = {0: helpers.even_ranges(traced, 0, len(traced.nodes), 3)}
    plan = helpers.make_plan(
        task, traced=traced, units=3, microbatches=2, clip_norm=0.1, **options
    )
    record = helpers.run(plan, task, tmp_path, verify=True, steps=1, warmup=0)
    assert record.verify is not None
    assert record.verify.passed, record.verify


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mlp", "resnet50", "gpt", "moe", "dlrm"])
def test_zoo_model_verifies_with_shared_out_weights(name: str, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    task = helpers.shallow(name)
    traced = helpers.traced_of(task)
    shapes: list[dict[str, Any]] = [
        {"zero": 1},
        {"zero": 2},
        {"zero": 3, "dp": 2},
        {"zero": 3, "pp": 2, "clip_norm": 0.1},
    ]
    for i, shape in enumerate(shapes):
        plan = helpers.make_plan(task, traced=traced, shard=2, units=3, microbatches=2, **shape)
        record = helpers.run(
            plan, task, tmp_path / str(i), verify=True, steps=1, warmup=0, timeout_s=120.0
        )
        assert record.verify is not None
        assert record.verify.passed, (plan.name, record.verify)
