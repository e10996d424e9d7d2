"""Sessions and the processes around them: what is refused, what they leave, how they start."""

from __future__ import annotations

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
from own_loop_helpers import PLANS, STEPS, data, given, mse, own_model, plain_loop

import autopar
from autopar.core.errors import InputError
from autopar.plans import Plan
from autopar.tasks.resolve import resolve

ROOT = Path(__file__).parents[2]


def test_post_local_sgd_needs_the_number_of_steps() -> None:
    plan = helpers.make_plan(models.mlp(), dp=2, sync="post_local_sgd:2:0.5")
    with pytest.raises(InputError, match="share of all steps"):
        autopar.parallelize(own_model(), plan, **given())


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
