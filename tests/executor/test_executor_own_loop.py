"""A plan inside a user's own loop must train as the plain loop in one process does."""

from __future__ import annotations

import copy
import gc
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import executor_helpers as helpers
import executor_models as models
import pytest
import torch
import torch.distributed as dist
from executor_ranks import on_ranks

import autopar
from autopar.core.errors import GateError, InputError
from autopar.executor.given import copied
from autopar.plans import Mesh, Plan
from autopar.tasks import Task
from autopar.tasks.resolve import resolve

ROOT = Path(__file__).parents[2]
STEPS = 3
PLANS: dict[str, dict[str, Any]] = {
    "dp2": {"dp": 2, "microbatches": 2},
    "pp2": {"pp": 2, "microbatches": 4},
    "interleaved": {"pp": 2, "stages": 4, "schedule": "interleaved", "microbatches": 4},
    "tp2": {"mesh": Mesh(tp=2), "microbatches": 4},
    "zero1": {"mesh": Mesh(dp_shard=2), "zero": 1, "microbatches": 2},
    "zero3": {"mesh": Mesh(dp_shard=2), "zero": 3, "microbatches": 2},
    "zero2 pp2": {"mesh": Mesh(dp_shard=2, pp=2), "zero": 2, "microbatches": 2},
    "zero bubble": {"pp": 2, "schedule": "zero_bubble", "microbatches": 4},
    "recompute": {"dp": 2, "microbatches": 2, "recompute": {0: ((0, 3),)}},
}


def decay(optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
    return torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)


def adam(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=1e-2)


def mse(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.mse_loss(output, target)


def data(step: int, count: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(100 + step)
    return torch.randn(count, 8, generator=generator), torch.randn(count, 8, generator=generator)


def own_model(seed: int = 5) -> torch.nn.Module:
    torch.manual_seed(seed)
    return models.Mlp(8, 4, 0.0)


def plain_loop(model: torch.nn.Module, steps: int, clip_norm: float | None = None) -> list[float]:
    optimizer = adam(model.parameters())
    scheduler = decay(optimizer)
    losses = []
    for step in range(steps):
        inputs, target = data(step)
        loss = mse(model(inputs), target)
        loss.backward()  # type: ignore[no-untyped-call]
        if clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(model.parameters(), clip_norm)
        optimizer.step()
        optimizer.zero_grad()
        scheduler.step()
        losses.append(float(loss.detach()))
    return losses


def given(**changes: Any) -> dict[str, Any]:
    return {"loss": mse, "example": data(0), "optimizer": adam, "scheduler": decay, **changes}


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


def test_post_local_sgd_needs_the_number_of_steps() -> None:
    plan = helpers.make_plan(models.mlp(), dp=2, sync="post_local_sgd:2:0.5")
    with pytest.raises(InputError, match="share of all steps"):
        autopar.parallelize(own_model(), plan, **given())


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


def test_wrong_use_is_refused(tmp_path: Path) -> None:
    one = helpers.make_plan(models.mlp(), microbatches=2)
    two = helpers.make_plan(models.mlp(), dp=2)
    with pytest.raises(InputError) as caught:
        autopar.parallelize(own_model(), two, **given())
    assert any("torchrun --nproc-per-node=2" in note for note in caught.value.__notes__)
    for arguments, message in [
        ((own_model(), two, given()), "has 2 ranks, this script runs on its own"),
        ((own_model(), one, given(loss=None, example=None)), "needs loss, example besides"),
        ((own_model(), one, given(colour=1)), "colour"),
        ((models.mlp(), one, {"loss": mse}), "a task and loss besides"),
        ((3, one, given()), "model is int"),
        ((own_model(), one, given(example=data(0)[0])), "example is Tensor"),
        ((own_model(), one, given(example=(data(0)[0], data(0, 3)[1]))), r"\[3, 8\] samples"),
        ((torch.nn.DataParallel(own_model()), one, given()), "wrapped in DataParallel"),
        ((torch.nn.Linear(8, 8, device="meta"), one, given()), "meta device"),
        ((own_model(), tmp_path / "missing.json", given()), "missing.json"),
    ]:
        with pytest.raises(InputError, match=message):
            autopar.parallelize(arguments[0], arguments[1], **arguments[2])

    def alone(number: int) -> None:
        session = autopar.parallelize(own_model(), one, **given())
        with pytest.raises(InputError, match=r"\[3\] samples .* takes 4"):
            session.step(*data(0, 3))
        with pytest.raises(InputError, match=r"the global batch .* takes 4"):
            session.part(*data(0, 8))
        session.close()
        with pytest.raises(InputError, match="session is closed"):
            session.step(*data(0, 4))
        with pytest.raises(InputError, match="has 2 ranks, 1 processes were started"):
            autopar.parallelize(own_model(), two, **given())
        with pytest.raises(InputError, match="plan is for another model"):
            autopar.parallelize(torch.nn.Linear(8, 8), one, **given())

    on_ranks(1, alone)


def test_different_models_on_different_ranks_are_refused() -> None:
    plan = helpers.make_plan(models.mlp(), dp=2)

    def rank(number: int) -> None:
        with pytest.raises(InputError, match="rank 1 built another model than rank 0"):
            autopar.parallelize(models.Mlp(8, 4 + number, 0.0), plan, **given())

    on_ranks(2, rank)


def test_one_rank_needs_no_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    for key in ("RANK", "WORLD_SIZE", "MASTER_ADDR"):
        monkeypatch.delenv(key, raising=False)
    plan = helpers.make_plan(models.mlp(), microbatches=4)
    with autopar.parallelize(own_model(), plan, **given()) as session:
        assert (session.rank, session.replica, session.is_last) == (0, 0, True)
        losses = [session.step(*data(step)) for step in range(STEPS)]
    assert losses == pytest.approx(plain_loop(own_model(), STEPS), rel=1e-5)
    assert not dist.is_initialized()


def test_a_closed_session_leaves_no_threads_that_forks_would_wait_for() -> None:
    """A gloo group that only a reference cycle holds would hang the collector of a fork."""

    def rank(number: int) -> None:
        plan = helpers.make_plan(models.mlp())
        dist.destroy_process_group()
        session = autopar.parallelize(own_model(), plan, **given())
        session.step(*data(0, 2))
        session.cycle = session  # type: ignore[attr-defined]
        session.close()
        del session
        child = os.fork()
        if child == 0:
            gc.collect()
            os._exit(0)
        for _ in range(500):
            if os.waitpid(child, os.WNOHANG)[0]:
                return
            time.sleep(0.01)
        os.kill(child, signal.SIGKILL)
        raise AssertionError("the fork hangs")

    on_ranks(1, rank)


def test_copies_keep_ties_and_take_no_memory() -> None:
    model = models.Knotted()
    empty = copied(model, meta=True)
    assert empty.head.weight is empty.embedding.weight
    assert all(t.is_meta for t in (*empty.parameters(), *empty.buffers()))
    assert not any(t.is_meta for t in model.parameters())


@pytest.mark.slow
@pytest.mark.parametrize("shape", ["dp2", "pp2"])
def test_the_documented_script_under_torchrun(shape: str, tmp_path: Path) -> None:
    page = (ROOT / "docs" / "own-loop.md").read_text(encoding="utf-8")
    found = re.search(r"```python\n(.*?)```", page, re.DOTALL)
    assert found is not None
    script = tmp_path / "train.py"
    script.write_text(found[1], encoding="utf-8")
    assert len(found[1].splitlines()) <= 42
    task = resolve(f"{script}:task")
    plan: Plan = helpers.make_plan(task, **PLANS[shape], microbatch_size=4)
    assert plan.global_batch == 16
    plan.save(tmp_path / "plan.json")
    line = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    outcome = subprocess.run(
        [*line, str(script), "plan.json"],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert outcome.returncode == 0, outcome.stderr
    assert "Warning" not in outcome.stderr
    losses = [float(row.split()[1]) for row in outcome.stdout.splitlines()]
    names: dict[str, Any] = {"__name__": "train"}
    exec(found[1], names)
    torch.manual_seed(1)
    model = names["model"]()
    optimizer = names["adam"](model.parameters())
    scheduler = names["decay"](optimizer)
    expected = []
    for step in range(10):
        inputs, target = names["data"](step)
        loss = names["loss"](model(inputs), target)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        scheduler.step()
        expected.append(float(loss.detach()))
    assert losses == pytest.approx(expected, rel=1e-4)
    weights = torch.load(tmp_path / "weights.pt", weights_only=True)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(weights[name], value, rtol=1e-3, atol=1e-5)
