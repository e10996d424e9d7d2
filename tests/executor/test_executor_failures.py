"""What a user sees when a run cannot start or does not finish."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import executor_helpers as helpers
import executor_models as models
import pytest

from autopar.core.errors import EnvironmentUnableError, InputError, TraceError, TrainingError
from autopar.executor import RunOptions
from autopar.plans import Mesh, Plan, TaskRef
from autopar.results import RunRecord
from autopar.tasks import Task


@pytest.fixture(scope="module")
def plan() -> Plan:
    return helpers.make_plan(models.mlp(), dp=2)


def aimed(plan: Plan, task: Task) -> Plan:
    return dataclasses.replace(plan, task=dataclasses.replace(plan.task, name=task.name))


def test_first_failing_rank_is_named(plan: Plan, tmp_path: Path) -> None:
    task = models.failing()
    with pytest.raises(TrainingError) as caught:
        helpers.run(aimed(plan, task), task, tmp_path, steps=8)
    message = caught.value.message
    assert "rank 1 failed first: RuntimeError: the layer melted" in message
    assert "\n" not in message
    log = Path(message.rpartition("log: ")[2])
    assert "the layer melted" in log.read_text()
    assert not (tmp_path / "record.json").exists()


def test_a_killed_rank_is_named(plan: Plan, tmp_path: Path) -> None:
    task = models.failing(how="kill", rank=0)
    with pytest.raises(TrainingError, match="rank 0 was killed by signal 9"):
        helpers.run(aimed(plan, task), task, tmp_path, steps=8)


def test_a_hanging_rank_ends_the_run_in_time(plan: Plan, tmp_path: Path) -> None:
    task = models.failing(how="hang")
    start = time.monotonic()
    with pytest.raises(TrainingError, match="rank 1 stopped answering"):
        helpers.run(aimed(plan, task), task, tmp_path, steps=8, timeout_s=3.0)
    assert time.monotonic() - start < 20


def test_a_loss_that_is_no_number_stops_the_run(plan: Plan, tmp_path: Path) -> None:
    task = models.exploding()
    with pytest.raises(TrainingError, match="the loss of step 0 is inf"):
        helpers.run(helpers.make_plan(task, dp=2), task, tmp_path, steps=20)


def test_plan_for_another_model(plan: Plan, tmp_path: Path) -> None:
    for shape in ({"dp": 2}, {"pp": 2}):
        other = helpers.make_plan(models.mlp(depth=5), **shape)
        with pytest.raises(InputError, match="plan is for another model") as caught:
            helpers.run(other, models.mlp(), tmp_path)
        assert other.task.fingerprint in caught.value.message


def test_pipeline_of_a_model_that_cannot_be_exported(plan: Plan, tmp_path: Path) -> None:
    task = models.branching()
    with pytest.raises(TraceError, match="branching"):
        helpers.run(aimed(helpers.make_plan(models.mlp(), pp=2), task), task, tmp_path)


def test_what_the_executor_does_not_run_is_refused(plan: Plan, tmp_path: Path) -> None:
    experts = dataclasses.replace(plan, mesh=Mesh(dp_replicate=2, ep=2))
    with pytest.raises(InputError, match="ep=2"):
        helpers.run(experts, models.mlp(), tmp_path)
    quarter = dataclasses.replace(plan, precision="float8")
    with pytest.raises(InputError, match="float8"):
        helpers.run(quarter, models.mlp(), tmp_path)


def test_a_stage_layout_that_the_schedule_cannot_run(tmp_path: Path) -> None:
    plan = helpers.make_plan(models.mlp(), pp=2, stages=4, schedule="interleaved")
    stages = tuple(
        dataclasses.replace(stage, pp=(0, 0, 1, 1)[i]) for i, stage in enumerate(plan.stages)
    )
    with pytest.raises(InputError, match="on one pipeline rank"):
        helpers.run(dataclasses.replace(plan, stages=stages), models.mlp(), tmp_path)


def test_cut_inside_a_tuple_is_refused(tmp_path: Path) -> None:
    task = models.knotted()
    traced = helpers.traced_of(task)
    bad = next(c for c in range(1, len(traced.nodes)) if c not in traced.cuts)
    plan = helpers.make_plan(task, traced=traced, cuts=(bad,), pp=2)
    with pytest.raises(InputError, match="cannot be cut"):
        helpers.run(plan, task, tmp_path)


def test_options_are_checked(plan: Plan, tmp_path: Path) -> None:
    for wrong in (
        {"steps": 0},
        {"warmup": -1},
        {"data_split": "rnadom"},
        {"nnodes": 2},
        {"tolerance": 0.0},
        {"clip_norm": -1.0},
        {"node_rank": 3},
        {"launcher": "ssh"},
    ):
        with pytest.raises(InputError) as caught:
            RunOptions(out=tmp_path, **wrong)  # type: ignore[arg-type]
        assert "\n" not in caught.value.message
    with pytest.raises(InputError, match="local_ranks=3"):
        helpers.run(plan, models.mlp(), tmp_path, local_ranks=3)
    with pytest.raises(InputError, match="has no target"):
        helpers.run(plan, models.mlp(), tmp_path, launcher="torchrun")
    with pytest.raises(EnvironmentUnableError, match="CUDA devices"):
        helpers.run(plan, models.mlp(), tmp_path, device="cuda")


def test_run_folder_that_is_a_file(plan: Plan, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("x")
    with pytest.raises(InputError, match="cannot use run folder"):
        helpers.run(plan, models.mlp(), tmp_path / "taken")


def test_task_ref_is_compared_by_ops_not_by_name(plan: Plan, tmp_path: Path) -> None:
    ref = TaskRef(
        name="renamed",
        target=None,
        fingerprint=plan.task.fingerprint,
        op_count=plan.task.op_count,
    )
    record = helpers.run(dataclasses.replace(plan, task=ref), models.mlp(), tmp_path, steps=1)
    assert isinstance(record, RunRecord)


def descendants(pid: int) -> list[int]:
    found = []
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        found += [int(child), *descendants(int(child))]
    return found


@pytest.mark.parametrize(
    ("launcher", "number"),
    [
        ("fork", signal.SIGINT),
        ("fork", signal.SIGKILL),
        pytest.param("torchrun", signal.SIGINT, marks=pytest.mark.slow),
        pytest.param("torchrun", signal.SIGKILL, marks=pytest.mark.slow),
    ],
)
def test_no_process_outlives_the_launcher(
    launcher: str, number: signal.Signals, tmp_path: Path
) -> None:
    script = tmp_path / "main.py"
    here = Path(__file__).parent
    script.write_text(
        textwrap.dedent(f"""
        import signal, sys
        signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs ignore it
        sys.path[:0] = [{str(here)!r}, {str(here.parent.parent)!r}]
        from pathlib import Path
        import executor_helpers as helpers, executor_models as models
        from autopar.tasks.resolve import resolve
        task = resolve({str(here / "executor_models.py")!r} + ":failing?how=hang")
        plan = helpers.make_plan(models.mlp(), dp=2)
        out = Path({str(tmp_path / "run")!r})
        helpers.run(plan, task, out, steps=10**6, launcher={launcher!r})
        """)
    )
    process = subprocess.Popen(
        [sys.executable, str(script)], stderr=subprocess.DEVNULL, start_new_session=True
    )
    progress = tmp_path / "run" / "progress.jsonl"
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline and not (progress.exists() and progress.stat().st_size):
        assert process.poll() is None
        time.sleep(0.05)
    children = descendants(process.pid)
    assert len(children) == (2 if launcher == "fork" else 3)
    os.kill(process.pid, number)
    process.wait(timeout=20)
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and any(alive(pid) for pid in children):
        time.sleep(0.05)
    assert not [pid for pid in children if alive(pid)]


def alive(pid: int) -> bool:
    """Running; a zombie that init has not collected yet is not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
