"""bench --convergence: real probe runs, what they are worth, and where planning finds them."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from autopar.api.convergence import measure_convergence, task_key, with_convergence
from autopar.api.convergence_goal import Goal
from autopar.api.convergence_probe import Probe
from autopar.api.places import convergence_path
from autopar.api.profiling import profile
from autopar.api.sync_table import gradient_bytes
from autopar.cli.main import _run
from autopar.core.errors import InputError, TrainingError
from autopar.core.estimate import Estimate
from autopar.results import ConvergenceResult, ConvergenceRow, RunRecord
from autopar.sync import SyncGroup, parse_sync
from autopar.tasks import Task

TARGET = "zoo:mlp?inputs=8&width=16&classes=4"


def linear(lr: float = 0.05, target_loss: float | None = None) -> Task:
    """A noisy linear fit: its loss falls at a rate that the learning rate sets."""
    truth = torch.linspace(-1.0, 1.0, 8).unsqueeze(1)

    def batch(n: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        x = torch.randn(n, 8, generator=generator)
        return x, x @ truth + 0.1 * torch.randn(n, 1, generator=generator)

    return Task(
        name="linear",
        model=lambda: nn.Linear(8, 1),
        batch=batch,
        loss=nn.functional.mse_loss,
        optimizer=lambda params: torch.optim.SGD(params, lr=lr),
        target_loss=target_loss,
    )


@pytest.fixture
def result(workplace: Path) -> ConvergenceResult:
    found, path = measure_convergence(
        linear(), sync="ps_sync,ps_stale:2,diloco:500", probe_steps=60, seeds=2, global_batch=16
    )
    assert ConvergenceResult.load(path) == found
    return found


def test_every_mode_is_measured_or_has_a_reason(result: ConvergenceResult):
    rows = {row.name: row for row in result.rows}
    assert list(rows) == ["all_reduce", "ps_sync", "ps_stale:2", "diloco:500"]
    exact = rows["all_reduce"]
    assert exact.multiplier == Estimate(value=1.0, low=1.0, high=1.0, source="measured")
    assert exact.time_to_loss_s is not None
    assert exact.time_to_loss_s.low > 0
    assert exact.bytes_per_step == pytest.approx(9 * 4)  # 2 (n-1)/n of nine float32
    assert rows["ps_sync"].steps == pytest.approx(exact.steps, rel=0.05)
    stale = rows["ps_stale:2"]
    assert stale.status in ("measured", "not reached")
    assert (stale.multiplier is None) == (stale.status == "not reached")
    assert rows["diloco:500"].status == "too rare"
    assert "every 500 steps" in (rows["diloco:500"].reason or "")
    assert "diloco:500" in result.convergence.missed  # planning does not assume it instead
    assert "ps_sync" not in result.convergence.multipliers  # the same mathematics


def test_a_mode_that_learns_half_as_fast_needs_twice_the_steps(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
):
    """The harness must see a known multiplier: one mode is run with half the learning rate."""
    run = Probe.run

    lengths: dict[str, list[int]] = {}

    def slowed(self, name: str, seed: int, steps: int) -> RunRecord:
        self.task = linear(lr=0.01 if name == "ps_sync" else 0.02)
        lengths.setdefault(name, []).append(steps)
        return run(self, "all_reduce", seed, steps)

    monkeypatch.setattr(Probe, "run", slowed)
    found, _ = measure_convergence(
        linear(),
        sync="ps_sync,ps_sync:1",
        probe_steps=100,
        seeds=1,
        global_batch=32,
        target_loss=0.5,
    )
    exact = found.rows[0].steps[0]
    assert exact is not None
    assert lengths["ps_sync"] == [math.ceil(f * exact + found.window) for f in (1.5, 3.0)]
    assert len(lengths["ps_sync:1"]) == 1  # as fast as exact training: half the steps will do
    multiplier = found.rows[1].multiplier
    assert multiplier is not None
    assert multiplier.value == pytest.approx(2.0, rel=0.15)
    assert multiplier.low <= multiplier.value <= multiplier.high


def test_runs_are_as_long_as_what_a_mode_repeats():
    goal = Goal(target=1.0, window=10, exact_steps=[101.0])
    assert goal.lengths(parse_sync("all_reduce+int8"), 0) == [162, 313]
    assert goal.lengths(parse_sync("local_sgd:8"), 0) == [168, 320]
    assert replace(goal, slack=7.0).lengths(parse_sync("ps_async"), 0) == [162, 313, 616, 717]
    # a mode with phases is tried in runs that end soon after it reaches the loss
    assert goal.lengths(parse_sync("post_local_sgd:8"), 0) == [112, 144, 176, 320]


@pytest.mark.parametrize(
    ("sync", "ranks"),
    [
        ("local_sgd:8", 2),
        ("local_sgd:8+int8", 2),
        ("post_local_sgd:8", 2),
        ("diloco:8", 2),
        ("hierarchical:8", 4),
        ("ps_async", 2),
        ("all_reduce+topk:0.2", 4),
    ],
)
def test_counted_bytes_are_those_declared(workplace: Path, sync: str, ranks: int):
    """Whole runs, as the tables show them: no average, no push that is left out or twice."""
    found, _ = measure_convergence(
        wide(), sync=sync, ranks=ranks, probe_steps=40, seeds=1, node_size=ranks // 2
    )
    row = found.rows[1]
    group = SyncGroup(ranks=ranks, nodes=2)
    declared = parse_sync(sync).work(gradient_bytes(wide()), group).sent_bytes
    assert row.bytes_per_step == pytest.approx(declared, rel=0.02)


def wide() -> Task:
    """The linear fit with enough outputs that frames' headers are small beside gradients."""

    def batch(n: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        x = torch.randn(n, 128, generator=generator)
        return x, x.flip(1)

    return replace(
        linear(), name="wide", model=lambda: nn.Linear(128, 128), batch=batch, optimizer=adam
    )


def adam(params: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.Adam(params, lr=0.01)


def test_the_loss_of_the_task_is_the_goal_when_it_is_reached(workplace: Path):
    def goal(task: Task, **options: float) -> tuple[float, tuple[str, ...]]:
        found, _ = measure_convergence(task, sync="all_reduce", seeds=1, probe_steps=40, **options)
        return found.target_loss, found.warnings

    assert goal(linear(target_loss=1.5)) == (1.5, ())
    low, warnings = goal(linear(target_loss=1e-9))
    assert low > 1e-9
    assert "does not reach the task's loss" in warnings[0]
    assert goal(linear(), target_loss=1.4) == (1.4, ())
    with pytest.raises(InputError, match="exact training reaches") as caught:
        goal(linear(), target_loss=1e-9)
    assert "--probe-steps" in (caught.value.hint or "")


def test_a_task_that_does_not_learn_is_no_measure(workplace: Path):
    with pytest.raises(TrainingError, match="does not fall"):
        measure_convergence(linear(lr=0.0), sync="all_reduce", seeds=1, probe_steps=30)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"ranks": 1}, "nobody to synchronise"),
        ({"global_batch": 3}, "global batch 3"),
        ({"probe_steps": 4}, "too short"),
        ({"seeds": 0}, "seeds is 0"),
        ({"slack": 0.5}, "slack is 0.5"),
        ({"sync": "locl_sgd"}, "unknown sync mode"),
    ],
)
def test_bad_numbers_are_refused(workplace: Path, options: dict[str, object], words: str):
    with pytest.raises(InputError, match=words) as caught:
        measure_convergence(linear(), **options)  # type: ignore[arg-type]
    assert caught.value.hint


def stored(key: str, name: str, value: float, ranks: int = 2) -> ConvergenceResult:
    exact = Estimate(value=value, low=value, high=value, source="measured")
    return ConvergenceResult(
        task="mlp",
        key=key,
        ranks=ranks,
        global_batch=16,
        target_loss=1.0,
        window=5,
        probe_steps=50,
        seeds=2,
        rows=(
            ConvergenceRow(
                name=name, semantics="periodic", status="measured", multiplier=exact, steps=(9.0,)
            ),
        ),
    )


def test_profiles_find_the_multipliers_of_their_task_and_of_no_other(workplace: Path):
    known = profile(TARGET, measure=False)
    assert with_convergence(known) is known
    key = task_key(known.fingerprint, known.target)
    for ranks, value in ((2, 1.25), (4, 1.5)):
        found = stored(key, "local_sgd:8", value, ranks)
        found.save(convergence_path("mlp", key, ranks))
    stored("0" * 8, "local_sgd:8", 9.0, 3).save(convergence_path("mlp", "0" * 8, 3))
    filled = with_convergence(known)
    assert filled.multipliers(2)["local_sgd:8"].value == 1.25
    assert filled.multipliers(4)["local_sgd:8"].value == 1.5
    assert filled.multipliers(3) == {}
    assert filled.hash != known.hash
    assert type(filled).from_dict(filled.to_dict()) == filled


def test_a_second_measurement_keeps_the_modes_it_does_not_repeat():
    first, second = stored("k", "local_sgd:8", 1.2), stored("k", "local_sgd:4", 1.1)
    assert [row.name for row in second.joined(first).rows] == ["local_sgd:4", "local_sgd:8"]
    assert second.joined(stored("k", "local_sgd:8", 1.2, ranks=4)) == second


def test_command_line(workplace: Path, capsys: pytest.CaptureFixture[str]):
    line = f"bench {TARGET} --convergence --sync ps_sync --seeds 1 --probe-steps 40 --json"
    assert _run(line.split()) == 0
    data = json.loads(capsys.readouterr().out)["data"]
    assert [row["name"] for row in data["convergence"]] == ["all_reduce", "ps_sync"]
    assert data["convergence"][0]["multiplier"]["source"] == "measured"
    assert Path(data["bench"]).is_file()
    assert data["ranks"] == 2
