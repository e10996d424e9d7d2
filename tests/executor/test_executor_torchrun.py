"""Runs under torchrun's agent: one host, and two agents that stand for two hosts."""

from __future__ import annotations

import dataclasses
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import executor_helpers as helpers
import pytest

from autopar.core.errors import TrainingError
from autopar.results import RunRecord
from autopar.tasks import Task
from autopar.tasks.resolve import resolve

pytestmark = pytest.mark.slow
MODELS = Path(__file__).parent / "executor_models.py"


def find(name: str) -> Task:
    return resolve(f"{MODELS}:{name}")


def test_torchrun_equals_fork(tmp_path: Path) -> None:
    task = find("mlp")
    plan = helpers.make_plan(task, pp=2)
    forked = helpers.run(plan, task, tmp_path / "fork", steps=2)
    record = helpers.run(plan, task, tmp_path / "run", launcher="torchrun", steps=2, verify=True)
    assert record.verify is not None
    assert record.verify.passed
    assert record.losses == forked.losses


def test_failing_rank_under_torchrun_is_named(tmp_path: Path) -> None:
    plan = helpers.make_plan(find("mlp"), dp=2)
    task = find("failing?how=kill&rank=1")
    plan = dataclasses.replace(plan, task=dataclasses.replace(plan.task, target=task.target))
    with pytest.raises(TrainingError, match="rank 1 ended without an error message"):
        helpers.run(plan, task, tmp_path, launcher="torchrun", steps=8)


def test_two_hosts(tmp_path: Path) -> None:
    task = find("mlp")
    plan = helpers.make_plan(task, dp=2)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]

    def host(node: int) -> RunRecord:
        return helpers.run(
            plan,
            task,
            tmp_path / str(node),
            launcher="torchrun",
            nnodes=2,
            node_rank=node,
            rdzv_endpoint=f"127.0.0.1:{port}",
        )

    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(host, (0, 1))
    assert first.losses == second.losses
    assert first.to_dict()["timeline"] == second.to_dict()["timeline"]
