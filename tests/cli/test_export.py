"""``autopar export``: the contract's keys, text alone on stdout, losses on stderr."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from autopar.cli.main import _run
from autopar.exporters import EXPORTS
from autopar.plans import Mesh, Plan, Stage, TaskRef

PROBE = """
import sys
from autopar.cli.main import _run
code = _run(sys.argv[1:])
heavy = [m for m in ("torch", "transformers", "pandas", "plotly", "optuna") if m in sys.modules]
sys.stderr.write("HEAVY " + ",".join(heavy))
sys.exit(code)
"""


@pytest.fixture
def plan(workplace: Path) -> Plan:
    made = Plan(
        task=TaskRef(name="mlp", target="zoo:mlp", fingerprint="f", op_count=3),
        mesh=Mesh(dp_replicate=2),
        stages=(Stage(first_op=0, stop_op=3, pp=0),),
        microbatches=2,
        sync="ps_stale:4",
    )
    made.save(workplace / "plan.json")
    return made


def test_json_has_text_or_path_and_lossy(plan: Plan, capsys: pytest.CaptureFixture[str]) -> None:
    assert _run(["export", "plan.json", "--to", "deepspeed", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    data = document["data"]
    assert document["command"] == "export" and document["status"] == "ok"
    assert json.loads(data["text"])["gradient_accumulation_steps"] == 2
    assert "path" not in data
    assert {"sync", "task"} <= {row["key"] for row in data["lossy"]}
    assert all(row["reason"] for row in data["lossy"])
    assert _run(["export", "plan.json", "--to", "deepspeed", "--out", "made.json", "--json"]) == 0
    second = json.loads(capsys.readouterr().out)["data"]
    assert second["path"] == "made.json" and "text" not in second
    assert Path("made.json").read_text() == data["text"]


def test_stdout_is_the_text_alone(plan: Plan, capsys: pytest.CaptureFixture[str]) -> None:
    assert _run(["export", "plan.json", "--to", "deepspeed"]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["train_batch_size"] == 4
    assert "sync: " in printed.err and "not in deepspeed" in printed.err


def test_losses_are_comments_where_there_are_any(
    plan: Plan, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run(["export", "plan.json", "--to", "accelerate"]) == 0
    assert "#   sync: accelerate averages gradients" in capsys.readouterr().out


def test_catalog_lists_the_targets(capsys: pytest.CaptureFixture[str]) -> None:
    assert _run(["catalog", "exports", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["data"]["exports"]
    assert [row["name"] for row in rows] == list(EXPORTS)
    assert all(row["summary"] and row["written_for"] for row in rows)


@pytest.mark.parametrize("target", [name for name in EXPORTS if name != "perfetto"])
def test_export_does_not_import_torch(plan: Plan, target: str) -> None:
    line = [sys.executable, "-c", PROBE, "export", "plan.json", "--to", target]
    done = subprocess.run(line, capture_output=True, text=True, check=True)
    assert done.stderr.endswith("HEAVY ")
