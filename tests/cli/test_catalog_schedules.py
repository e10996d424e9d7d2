"""The catalogue says which schedules run, and the executor agrees."""

from __future__ import annotations

import json

from typer.testing import CliRunner

from autopar.cli.main import app
from autopar.executor.graph_path import action_rows
from autopar.plans import Mesh, Plan, Stage, TaskRef
from autopar.schedules import SCHEDULES


def plan_of(name: str) -> Plan:
    """Two ranks, two stages on each where the schedule wants them, four microbatches."""
    schedule = SCHEDULES.load(name)
    ranks = 1 if name == "none" else 2
    stages = 2 * ranks if schedule.interleaves else ranks
    return Plan(
        task=TaskRef(name="t", target=None, fingerprint="f", op_count=stages),
        mesh=Mesh(pp=ranks),
        stages=tuple(
            Stage(first_op=s, stop_op=s + 1, pp=schedule.rank_of(s, ranks)) for s in range(stages)
        ),
        schedule=name,
        microbatches=4,
        microbatch_size=1,
    )


def test_the_catalogue_and_the_executor_agree_on_what_runs() -> None:
    done = CliRunner().invoke(app, ["catalog", "schedules", "--json"])
    rows = json.loads(done.stdout)["data"]["schedules"]
    assert [row["name"] for row in rows] == list(SCHEDULES)
    for row in rows:
        plan = plan_of(row["name"])
        kinds = 3 if SCHEDULES.load(row["name"]).splits_backward else 2
        assert sum(map(len, action_rows(plan))) == kinds * len(plan.stages) * 4
