"""Training under sync modes: when replicas agree, resumption, equal mathematics, progress."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import executor_helpers as helpers
import executor_models as models
import pytest
import torch
from executor_ranks import on_ranks
from torch.nn import functional as F

from autopar.core.errors import InputError
from autopar.executor.ahead import build_ahead
from autopar.executor.data import ReplicaData
from autopar.executor.lowering import Lowering, lower
from autopar.executor.session import make_context
from autopar.executor.supported import check_supported
from autopar.executor.synchronising.registry import SYNCHRONISERS
from autopar.plans import Mesh, Plan
from autopar.sync import SYNC_MODES
from autopar.tasks import Task
from autopar.trace import build_model

MODES = ("local_sgd:3", "diloco:3", "post_local_sgd:3:0.5", "hierarchical:3")
COMPRESSED = ("all_reduce+topk:0.1", "all_reduce+powersgd:1", "local_sgd:3+topk:0.1")


def test_every_registered_mode_runs() -> None:
    assert sorted(SYNCHRONISERS) == sorted(SYNC_MODES)


def weights_of(lowering: Lowering) -> torch.Tensor:
    return torch.cat([p.detach().reshape(-1) for p in lowering.parameters.values()])


def train(plan: Plan, task: Task, steps: int, node_size: int | None = None) -> list[Any]:
    """Weights of every rank after each step, and after the run has been finished."""

    def body(rank: int) -> list[torch.Tensor]:
        context = make_context(plan, task, torch.device("cpu"), node_size=node_size)
        lowering = lower(context)
        lowering.synchroniser.begin(0, steps)
        seen = []
        for step in range(steps):
            context.recorder.begin()
            lowering.step(context.data.microbatches(step, rank))
            seen.append(weights_of(lowering))
        lowering.synchroniser.finish()
        return [*seen, weights_of(lowering)]

    return on_ranks(plan.world_size, body)


def agree(rows: list[Any], step: int, among: tuple[int, ...]) -> bool:
    return all(torch.equal(rows[rank][step], rows[among[0]][step]) for rank in among)


@pytest.mark.parametrize("compression", ["", "+int8", "+powersgd:1"])
@pytest.mark.parametrize("mode", MODES)
def test_replicas_agree_after_averages_and_part_between(mode: str, compression: str) -> None:
    task = models.mlp(width=16, depth=2)
    ranks = 4 if mode.startswith("hierarchical") else 2
    plan = helpers.make_plan(task, dp=ranks, sync=mode + compression)
    rows = train(plan, task, 8, node_size=2)
    everyone = tuple(range(ranks))
    exact = 4 if mode.startswith("post") else 0
    for step in range(8):
        wanted = step < exact or (step + 1) % 3 == 0
        assert agree(rows, step, everyone) == wanted, step
        if mode.startswith("hierarchical"):
            assert agree(rows, step, (0, 1))
            assert agree(rows, step, (2, 3))
    assert agree(rows, 8, everyone)
    moved = float((rows[0][8] - rows[0][0]).abs().max())
    assert moved > 1e-4


@pytest.mark.parametrize("sequence_parallel", [False, True])
@pytest.mark.parametrize("sync", ["all_reduce+int8", "all_reduce+topk:0.1", "local_sgd:2+int8"])
def test_copies_of_a_weight_under_tensor_parallelism_stay_the_same(
    sync: str, sequence_parallel: bool
) -> None:
    """Compressions round an element by its neighbours, which are others on each tp rank."""
    pytest.importorskip("transformers")
    task = helpers.shallow("gpt")
    plan = helpers.make_plan(
        task,
        mesh=Mesh(dp_replicate=2, tp=2),
        sync=sync,
        sequence_parallel=sequence_parallel,
    )
    ahead = build_ahead(plan, task)

    def body(rank: int) -> Any:
        context = make_context(plan, task, torch.device("cpu"), ahead=ahead)
        lowering = lower(context)
        lowering.synchroniser.begin(0, 2)
        for step in range(2):
            context.recorder.begin()
            lowering.step(context.data.microbatches(step, context.groups.replica))
        whole = {n: p for n, p in lowering.parameters.items() if n not in lowering.cuts}
        return {n: p.detach().clone() for n, p in whole.items()}

    rows = on_ranks(4, body)
    assert rows[0]
    for row in rows[1:]:
        for name, value in rows[0].items():
            assert torch.equal(row[name], value), name


def test_the_last_weights_are_the_mean_of_the_replicas() -> None:
    task = models.mlp(width=8, depth=2)
    plan = helpers.make_plan(task, dp=2, sync="local_sgd:3")
    rows = train(plan, task, 4)
    mean = (rows[0][3] + rows[1][3]) / 2
    assert torch.allclose(rows[0][4], mean, rtol=0, atol=1e-7)
    assert not torch.allclose(rows[0][3], mean, rtol=0, atol=1e-5)


def test_averages_after_every_step_are_all_reduce(tmp_path: Path) -> None:
    """SGD with momentum is linear in gradients: the mean of steps is the step of the mean."""
    task = models.mlp(width=8, depth=2)
    curves = [
        helpers.run(
            helpers.make_plan(task, dp=2, sync=sync), task, tmp_path / str(i), steps=6
        ).losses
        for i, sync in enumerate(["all_reduce", "local_sgd:1", "post_local_sgd:1:0.5"])
    ]
    assert curves[1] == pytest.approx(curves[0], rel=1e-5)
    assert curves[2] == pytest.approx(curves[0], rel=1e-5)


def test_the_outer_step_is_sgd_with_nesterov_momentum() -> None:
    """Against torch's optimizer on the mean weights of replicas that are simulated here."""
    task = models.mlp(width=8, depth=1, lr=0.3)
    plan = helpers.make_plan(task, dp=2, sync="diloco:2")
    rows = train(plan, task, 6)
    outer_weights = torch.nn.Parameter(initial_weights(plan, task))
    outer = torch.optim.SGD([outer_weights], lr=0.7, momentum=0.9, nesterov=True)
    inner = [Simulated(task, plan, replica) for replica in range(2)]
    for period in range(3):
        for replica in inner:
            replica.set(outer_weights.detach())
            replica.steps(2 * period, 2)
        mean = torch.stack([replica.weights() for replica in inner]).mean(0)
        outer_weights.grad = outer_weights.detach() - mean
        outer.step()
        found = rows[0][2 * period + 1]
        assert torch.allclose(found, outer_weights.detach(), rtol=0, atol=1e-6), period


def initial_weights(plan: Plan, task: Task) -> torch.Tensor:
    model = build_model(task, seed=plan.seed)
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()])


class Simulated:
    """One replica in this process, with an optimizer of its own."""

    def __init__(self, task: Task, plan: Plan, replica: int) -> None:
        self.task, self.replica = task, replica
        self.model = build_model(task, seed=plan.seed)
        self.optimizer = task.optimizer(self.model.parameters())
        self.data = ReplicaData(
            task,
            seed=plan.seed,
            split=plan.data_split,
            shares=(plan.microbatch_size,) * 2,
            microbatches=1,
        )

    def set(self, flat: torch.Tensor) -> None:
        torch.nn.utils.vector_to_parameters(flat.clone(), self.model.parameters())

    def weights(self) -> torch.Tensor:
        return torch.nn.utils.parameters_to_vector(self.model.parameters()).detach()

    def steps(self, first: int, count: int) -> None:
        for step in range(first, first + count):
            ((inputs, target),) = self.data.microbatches(step, self.replica)
            self.optimizer.zero_grad()
            torch.autograd.backward(self.task.loss(self.model(inputs), target))
            self.optimizer.step()


@pytest.mark.parametrize("sync", [*MODES[:3], *COMPRESSED, "diloco:3+powersgd:1"])
def test_a_resumed_run_repeats_the_uninterrupted_one(sync: str, tmp_path: Path) -> None:
    """Saved between two averages, with optimizer state, errors and momentum of every replica."""
    task = models.knotted(dropout=0.2)
    plan = helpers.make_plan(task, dp=2, sync=sync, microbatches=2)
    whole = helpers.run(plan, task, tmp_path / "whole", steps=8, warmup=0).losses
    first = helpers.run(plan, task, tmp_path / "a", steps=5, warmup=0, checkpoint_every=5)
    if sync.startswith("post"):  # a shorter run switches earlier
        first = helpers.run(plan, task, tmp_path / "a", steps=8, warmup=0, checkpoint_every=5)
    rest = helpers.run(
        plan, task, tmp_path / "b", steps=3, warmup=0, resume=tmp_path / "a" / "checkpoints"
    )
    assert first.losses == whole[: len(first.losses)]
    assert rest.losses == whole[5:]
    assert not any("was saved under" in text for text in rest.warnings)


def test_a_checkpoint_between_averages_is_the_mean_model(tmp_path: Path) -> None:
    task = models.mlp(width=8, depth=2)
    plan = helpers.make_plan(task, dp=2, sync="local_sgd:3")
    helpers.run(plan, task, tmp_path / "a", steps=4, warmup=0, checkpoint_every=4)
    other = helpers.make_plan(task, pp=2, microbatches=2)
    record = helpers.run(
        other, task, tmp_path / "b", steps=1, warmup=0, resume=tmp_path / "a" / "checkpoints"
    )
    assert any("was saved under 'local_sgd:3'" in text for text in record.warnings)
    rows = train(plan, task, 4)
    losses = []
    for replica in range(2):
        simulated = Simulated(task, plan, replica)
        simulated.set((rows[0][3] + rows[1][3]) / 2)
        ((inputs, target),) = simulated.data.microbatches(4, replica)
        losses.append(float(task.loss(simulated.model(inputs), target).detach()))
    assert record.losses == pytest.approx([sum(losses) / 2], rel=1e-5)


def test_nodes_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    task = models.mlp()
    plan = helpers.make_plan(task, dp=2, sync="hierarchical:2")
    with pytest.raises(Exception, match="two or more nodes"):
        helpers.run(plan, task, tmp_path)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"dp": 1, "sync": "all_reduce+int8"}, "needs two or more ranks"),
        ({"pp": 2, "dp": 1, "sync": "local_sgd"}, "needs two or more ranks"),
        ({"dp": 2, "pp": 2, "sync": "ps_sync"}, "does not work with pp=2"),
    ],
)
def test_refusals_say_why(changes: dict[str, Any], reason: str) -> None:
    task = models.mlp()
    with pytest.raises(InputError, match=reason):
        check_supported(helpers.make_plan(task, **changes))


def separable(lr: float) -> Task:
    """Two classes on either side of a plane, through a small network."""

    def batch(n: int, g: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        points = torch.randn(n, 16, generator=g)
        return points, (points[:, :8].sum(1) > 0).long()

    return Task(
        name="separable",
        model=lambda: torch.nn.Sequential(
            torch.nn.Linear(16, 32), torch.nn.ReLU(), torch.nn.Linear(32, 2)
        ),
        batch=batch,
        loss=F.cross_entropy,
        optimizer=lambda params: torch.optim.SGD(params, lr=lr, momentum=0.9),
    )


@pytest.mark.parametrize(
    "sync",
    [
        *(f"all_reduce+{c}" for c in ("fp16", "bf16", "int8", "powersgd:2", "topk:0.05")),
        "local_sgd:4",
        "post_local_sgd:4:0.5",
        "diloco:4",
        "hierarchical:4",
        "local_sgd:4+int8",
    ],
)
def test_training_learns(sync: str, tmp_path: Path) -> None:
    # the outer optimizer makes steady changes 0.7 / (1 - 0.9) times as large
    task = separable(lr=0.1 / 7 if sync.startswith("diloco") else 0.1)
    ranks = 4 if sync.startswith("hierarchical") else 2
    plan = helpers.make_plan(task, dp=ranks, sync=sync, microbatch_size=32 // ranks)
    losses = helpers.run(plan, task, tmp_path, steps=80, warmup=0, node_size=2).losses
    assert sum(losses[:5]) / 5 > 0.5
    assert sum(losses[-10:]) / 10 < 0.25
