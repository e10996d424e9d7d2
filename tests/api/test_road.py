"""The whole road on a user's own model: measure, profile, plan, run, report, gate."""

from __future__ import annotations

import fcntl
import io
import json
import os
import shutil
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest

import autopar
from autopar.api.places import bench_folder, cluster_path, profile_path, run_folder, slug
from autopar.cli.main import _run
from autopar.results.bench import BenchResult

TASK = """
import torch
from torch import nn
import autopar


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, 2 * width)
        self.down = nn.Linear(2 * width, width)

    def forward(self, x):
        return x + self.down(torch.relu(self.up(self.norm(x))))


def task(width: int = 32) -> autopar.Task:
    def batch(n, generator):
        x = torch.randn(n, width, generator=generator)
        return x, x.sin()

    return autopar.Task(
        name="mine",
        model=lambda: nn.Sequential(*(Block(width) for _ in range(4))),
        batch=batch,
        loss=lambda output, target: (output - target).pow(2).mean(),
        optimizer=lambda params: torch.optim.AdamW(params, lr=1e-3),
    )
"""


@pytest.fixture
def place(workplace: Path) -> Path:
    (workplace / "mine.py").write_text(TASK)
    return workplace


@pytest.fixture(scope="session")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``cluster.json`` and what the command that measured it printed.

    Both roads start there: one of the processes that run tests measures, the others wait for it.
    """
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "measured"
    folder.mkdir(exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "printed.json").is_file():
            printed = io.StringIO()
            line = f"profile --cluster local:2 --quick --out {folder / 'cluster.json'} --json"
            with redirect_stdout(printed):
                assert _run(line.split()) == 0
            (folder / "printed.json").write_text(printed.getvalue())
    return folder


def envelope(capsys: pytest.CaptureFixture[str], line: str, code: int = 0) -> dict[str, Any]:
    assert _run([*line.split(), "--json"]) == code
    return data_of(capsys.readouterr().out)


def data_of(printed: str) -> dict[str, Any]:
    document = json.loads(printed)
    assert {"schema", "schema_version", "autopar_version", "command", "status", "warnings"} <= set(
        document
    )
    return dict(document["data"])


@pytest.mark.slow
def test_command_line_road(
    place: Path, measured: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    printed = data_of((measured / "printed.json").read_text())
    assert printed["devices"] == 2
    assert {"collective", "ranks", "alpha_s", "bytes_per_s"} <= set(printed["links"][0])
    overhead = autopar.Cluster.load(Path(printed["cluster"])).overhead
    assert 0 < overhead.forward_action_s < 0.1
    assert 0 < overhead.backward_action_s < 0.1
    cluster_path("local-2").parent.mkdir()
    shutil.copy(printed["cluster"], cluster_path("local-2"))  # where `local:2` is looked for

    profiled = envelope(capsys, "profile mine.py:task --batch 8 --busy-ranks 2")
    assert profiled["parameters"] == 4 * (2 * 32 + 2 * (2 * 32 * 32) + 64 + 32)
    assert profiled["unique_blocks"] < profiled["blocks"]
    again = envelope(capsys, "profile mine.py:task --batch 8 --busy-ranks 2")
    assert again["from_cache"]
    assert not profiled["from_cache"]

    line = f"plan {profiled['profile']} --cluster local:2 --global-batch 8 --fix pp=2"
    planned = envelope(capsys, f"{line} --out plan.json")
    assert {"best", "top", "baselines", "certificate", "search_time_s", "study"} <= set(planned)
    assert planned["certificate"]["gap"] == 0
    assert planned["best"]["plan"]["mesh"]["pp"] == 2
    Path("bare.json").write_text(json.dumps(planned["best"]["plan"]))

    ran = envelope(capsys, "run bare.json --steps 3 --warmup 1 --verify")
    assert ran["verify"]["passed"]
    assert ran["predicted"]["step_time_s"]["value"] > 0
    assert len(ran["losses"]) == 4
    assert Path(ran["report"]).stat().st_size > 100_000

    compared = envelope(capsys, f"report {ran['run_dir']} {ran['run_dir']} --format md")
    assert Path(compared["report"]).is_file()
    envelope(capsys, f"report {ran['run_dir']} --fail-if step_time>0s", code=5)
    envelope(capsys, "run bare.json --steps 2 --tolerance 0.0000001", code=5)

    line = "bench mine.py:task --cluster local:2 --plans bare.json --steps 2 --repeats 1"
    benched = envelope(capsys, line)
    (row,) = BenchResult.load(Path(benched["bench"])).rows
    assert row.measured_s == benched["rows"][0]["measured_s"]
    assert Path(benched["report"]).stat().st_size > 100_000
    assert Path(planned["out"]).is_file()
    assert bench_folder("mine", [row.plan.hash]) != Path(benched["bench"]).parent  # nor the next


@pytest.mark.slow
def test_python_road_with_a_task_that_has_no_target(place: Path, measured: Path) -> None:
    scope: dict[str, Any] = {}
    exec(TASK, scope)
    task = scope["task"](width=16)
    cluster = autopar.Cluster.load(measured / "cluster.json")
    overhead = cluster.overhead
    assert all(1e-6 < s < 0.1 for s in (overhead.forward_action_s, overhead.backward_action_s))
    assert overhead.receive_s is None or overhead.receive_s >= 0
    assert overhead.split.second.weight_s > 0
    profile = autopar.profile(task, batch=4, measure=False)
    result = autopar.plan(profile, cluster, global_batch=8, fix=("dp_replicate=2",))
    assert result.best.plan.mesh.dp_replicate == 2
    assert len(result.to_frame()) == len(result.top)
    assert result.study is not None
    record = autopar.run(result, task, steps=2, warmup=1, verify=True)
    assert record.verify is not None
    assert record.verify.passed


def test_a_measured_cluster_is_found_again(workplace: Path) -> None:
    """One rank: no collectives and nothing for the executor to add."""
    cluster = autopar.measure_cluster(1, quick=True)
    assert autopar.Cluster.load(cluster_path("local-1")) == cluster
    assert cluster.measured and cluster.device_count == 1
    assert 0 <= cluster.others_share <= 1
    assert cluster.provenance["measurement"]["quick"]


def test_default_places() -> None:
    assert slug("a/b:c d") == "a-b-c-d"
    first = profile_path("gpt", "zoo:gpt?layers=2", 8, "cpu")
    assert first != profile_path("gpt", "zoo:gpt?layers=4", 8, "cpu")


def test_run_folders_are_numbered(workplace: Path) -> None:
    first = run_folder("t", "dp2", "abcdef123")
    first.mkdir(parents=True)
    assert run_folder("t", "dp2", "abcdef123") != first


def test_the_api_names_are_not_shadowed_by_packages() -> None:
    """``import autopar.plans`` must not put a module where ``autopar.plan()`` belongs."""
    import autopar.executor
    import autopar.profiler
    import autopar.reporting
    import autopar.search

    for name in ("profile", "measure_cluster", "plan", "run", "bench", "report"):
        assert callable(getattr(autopar, name)), name
    assert sorted(autopar.__all__) == autopar.__all__
