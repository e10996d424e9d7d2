"""Forked ranks take the model and graph that the launcher made once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import executor_helpers as helpers
import executor_models as models
import pytest

from autopar.executor import ahead
from autopar.executor.ahead import Ahead, build_ahead, built
from autopar.plans import Plan
from autopar.tasks import Task


@pytest.fixture
def task() -> Task:
    return models.mlp()


def made(plan: Plan, task: Task) -> Ahead:
    found = build_ahead(plan, task)
    assert found is not None
    return found


def test_ranks_do_not_trace_again(
    task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = helpers.make_plan(task, pp=2)
    notes = tmp_path / "notes"
    trace = ahead.trace

    def noted(*arguments: Any, **options: Any) -> Any:
        with notes.open("a") as stream:
            stream.write(json.dumps("traced") + "\n")
        return trace(*arguments, **options)

    monkeypatch.setattr(ahead, "trace", noted)
    record = helpers.run(plan, task, tmp_path / "run", verify=True)
    assert record.verify is not None and record.verify.passed
    assert len(notes.read_text().splitlines()) == 1


def test_it_is_handed_out_once_and_for_its_own_size(task: Task) -> None:
    found = made(helpers.make_plan(task, pp=2), task)
    size = found.traced.batch
    model, traced = built(task, size + 1, 0, found)
    assert traced.batch == size + 1
    model, traced = built(task, size, 0, found)
    assert dict(model.named_parameters()).keys() == set(traced.parameter_names.values())
    again, _ = built(task, size, 0, found)
    assert again is not model and not hasattr(found, "model")


@pytest.mark.parametrize(
    "shape", [{"dp": 2}, {"shard": 2, "zero": 2, "batch_shares": (3, 1)}], ids=["eager", "uneven"]
)
def test_ranks_build_for_themselves(task: Task, shape: dict[str, Any]) -> None:
    assert build_ahead(helpers.make_plan(task, **shape), task) is None


def test_a_model_that_fails_is_left_to_the_ranks() -> None:
    task = models.branching()
    assert build_ahead(helpers.make_plan(models.mlp(), pp=2), task) is None
