"""A plan inside a user's own loop must train as the plain loop in one process does."""

from __future__ import annotations

import copy
from pathlib import Path

import executor_helpers as helpers
import executor_models as models
import pytest
import torch
from executor_ranks import on_ranks
from own_loop_helpers import PLANS, STEPS, adam, data, given, mse, own_model, plain_loop

import autopar
from autopar.core.errors import GateError, InputError
from autopar.executor.own_loop.given import copied
from autopar.tasks import Task


@pytest.mark.parametrize("shape", PLANS)
def test_session_equals_the_plain_loop(shape: str) -> None:
    plan = helpers.make_plan(models.mlp(), **PLANS[shape])

    def rank(number: int) -> tuple[list[float], dict[str, torch.Tensor], float]:
        model = own_model(seed=number)  # other weights on each rank: those of rank 0 count
        session = autopar.parallelize(model, plan, **given())
        torch.manual_seed(3)
        before = torch.get_rng_state()
        losses = [session.step(*session.part(*data(step))) for step in range(STEPS)]
        assert torch.equal(torch.get_rng_state(), before)
        assert session.loss == losses[-1]
        assert session.steps == STEPS
        assert session.scheduler is not None
        return losses, session.state_dict(), session.scheduler.get_last_lr()[0]

    (losses, weights, rate), (again, nothing, _), *_ = on_ranks(plan.world_size, rank)
    model = own_model(seed=0)
    assert losses == pytest.approx(plain_loop(model, STEPS), rel=1e-5)
    assert again == losses
    assert nothing == {}
    fresh = own_model()
    fresh.load_state_dict(weights)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(fresh.state_dict()[name], value, rtol=1e-4, atol=1e-6)
    assert rate == pytest.approx(1e-2 * 0.5**STEPS)


def test_the_users_own_object_is_trained() -> None:
    plan = helpers.make_plan(models.mlp(), dp=2)

    def rank(number: int) -> float:
        model = own_model()
        before = copy.deepcopy(model.state_dict())
        with autopar.parallelize(model, plan, **given()) as session:
            session.step(*data(0, 2))
            found = session.state_dict()
            assert all(torch.equal(found[n], v) for n, v in model.state_dict().items() if found)
        return sum(float((v - before[n]).abs().sum()) for n, v in model.state_dict().items())

    first, second = on_ranks(2, rank)
    assert first == second > 0


def test_lower_level_calls_and_clipping() -> None:
    plan = helpers.make_plan(models.mlp(), pp=2, microbatches=4)

    def rank(number: int) -> tuple[list[float | None], list[float]]:
        session = autopar.parallelize(own_model, plan, **given())
        with pytest.raises(InputError, match="clip needs gradients"):
            session.clip(1.0)
        losses, norms = [], []
        for step in range(STEPS):
            loss = session.forward_backward(*data(step))
            with pytest.raises(InputError, match="twice before optimizer_step"):
                session.forward_backward(*data(step))
            with pytest.raises(InputError, match="gradients wait"):
                session.save("nowhere")
            losses.append(None if loss is None else float(loss))
            norms.append(session.clip(0.05))
            session.optimizer_step()
        assert (losses[0] is not None) == session.is_last
        return losses, norms

    (first, norms), (last, others) = on_ranks(2, rank)
    model = own_model()
    assert first == [None] * STEPS
    assert last == pytest.approx(plain_loop(model, STEPS, clip_norm=0.05), rel=1e-5)
    assert norms == pytest.approx(others)
    assert min(norms) > 0.05


@pytest.mark.parametrize(("before", "after"), [("dp2", "pp2"), ("pp2", "dp2")])
def test_save_and_load_under_another_plan(before: str, after: str, tmp_path: Path) -> None:
    def rank(number: int) -> tuple[list[float], list[float]]:
        plans = [helpers.make_plan(models.mlp(), **PLANS[shape]) for shape in (before, after)]
        first = autopar.parallelize(own_model(), plans[0], **given())
        early = [first.step(*first.part(*data(step))) for step in range(2)]
        assert first.save(tmp_path).name == "step-2"
        second = autopar.parallelize(own_model(seed=9), plans[1], **given())
        second.step(*second.part(*data(7)))
        assert second.load(tmp_path) == 2
        late = [second.step(*second.part(*data(step))) for step in (2, 3)]
        assert not second.warnings
        return early, late

    (early, late), _ = on_ranks(2, rank)
    assert early + late == pytest.approx(plain_loop(own_model(), 4), rel=1e-5)


def test_a_changed_schedule_is_told(tmp_path: Path) -> None:
    plan = helpers.make_plan(models.mlp())

    def rank(number: int) -> tuple[str, ...]:
        with autopar.parallelize(own_model(), plan, **given()) as first:
            first.step(*data(0, 2))
            first.save(tmp_path)
        constant = lambda optimizer: torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0)  # noqa: E731
        with autopar.parallelize(own_model(), plan, **given(scheduler=constant)) as second:
            second.load(tmp_path)
            return second.warnings

    ((warning,),) = on_ranks(1, rank)
    assert "learning rates were [0.005]" in warning


def test_verify_in_a_session() -> None:
    class Noisy(models.Mlp):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x + 1e-2 * torch.randn_like(x))

    def rank(number: int) -> float:
        plan = helpers.make_plan(models.mlp(), dp=2)
        session = autopar.parallelize(own_model(), plan, **given(verify=True))
        assert session.verified is not None
        assert session.verified.passed
        first = session.step(*session.part(*data(0, 4)))
        noisy = helpers.make_plan(
            Task(name="noisy", model=lambda: Noisy(8, 4, 0.0), batch=models.mlp().batch,
                 loss=mse, optimizer=adam),
            dp=2,
        )  # fmt: skip
        with pytest.raises(GateError, match="verify failed"):
            autopar.parallelize(Noisy(8, 4, 0.0), noisy, **given(verify=True))
        return first

    first, _ = on_ranks(2, rank)
    inputs, target = data(0, 4)
    assert first == pytest.approx(float(mse(own_model()(inputs), target).detach()), rel=1e-5)


@pytest.mark.parametrize("sync", ["local_sgd:2", "diloco:2", "hierarchical:2", "post_local_sgd:2"])
def test_replicas_that_train_apart_are_one_model_when_asked(sync: str) -> None:
    ranks = 4 if sync.startswith("hierarchical") else 2
    plan = helpers.make_plan(models.mlp(), dp=ranks, microbatches=4 // ranks, sync=sync)

    def rank(number: int) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        model = own_model()
        session = autopar.parallelize(model, plan, **given(steps=STEPS, node_size=2))
        for step in range(STEPS):
            session.step(*session.part(*data(step)))
        whole = session.state_dict()
        session.close()
        return whole, {n: v.clone() for n, v in model.state_dict().items()}

    (whole, first), (nothing, second), *_ = on_ranks(ranks, rank)
    assert not nothing
    for name, value in whole.items():
        torch.testing.assert_close(first[name], second[name])
        if not sync.startswith("diloco"):  # whose last step goes beyond the mean weights
            torch.testing.assert_close(first[name], value)
        assert not torch.equal(value, own_model().state_dict()[name])


def test_tied_weights_and_buffers_come_back_whole() -> None:
    task = models.knotted(dropout=0.0)
    plan = helpers.make_plan(task, pp=2)
    batch = task.batch(8, torch.Generator().manual_seed(1))

    def rank(number: int) -> dict[str, torch.Tensor]:
        with autopar.parallelize(task, plan) as session:
            session.step(*batch)
            return session.state_dict()

    weights, _ = on_ranks(2, rank)
    model = task.model()
    model.load_state_dict(weights)
    assert torch.equal(weights["head.weight"], weights["embedding.weight"])
    assert int(weights["blocks.0.norm.num_batches_tracked"]) == 4


def test_copies_keep_ties_and_take_no_memory() -> None:
    model = models.Knotted()
    empty = copied(model, meta=True)
    assert empty.head.weight is empty.embedding.weight
    assert all(t.is_meta for t in (*empty.parameters(), *empty.buffers()))
    assert not any(t.is_meta for t in model.parameters())
