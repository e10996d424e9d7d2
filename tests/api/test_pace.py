"""How fast the host is beside a profile and beside a run, and what that makes of the error."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import autopar
from autopar.executor.session import _paced
from autopar.graph import GraphProfile
from autopar.plans import Plan
from autopar.profiler import profile_task
from autopar.profiler.pace import Pace
from autopar.profiler.timing.policy import MeasurePolicy
from autopar.results import RunRecord
from autopar.results.bench import BenchResult, BenchRow
from autopar.tasks.resolve import resolve

TARGET = "zoo:mlp?inputs=8&width=8&depth=2&classes=2"
QUICK = MeasurePolicy(warmup=1, fewest_repeats=3, most_repeats=4, point_s=0.01, noisy_spread=1e9)


def test_sampling_leaves_random_numbers_and_gradients_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    pace = Pace()
    assert pace.seconds is None
    with torch.no_grad():
        pace.sample()
        pace.sample()
    assert torch.equal(torch.rand(3), expected)
    assert len(pace.samples_s) == 2
    assert 1e-5 < pace.seconds < 5


@pytest.mark.parametrize(("steps", "count"), [(range(3, 8), 5), (range(3, 103), 17)])
def test_samples_are_spread_over_the_measured_steps(steps: range, count: int) -> None:
    chosen = _paced(steps, torch.device("cpu"))
    assert len(chosen) == count
    assert chosen[0] == 3
    assert not _paced(steps, torch.device("cuda"))


@pytest.fixture(scope="module")
def profile(tmp_path_factory: pytest.TempPathFactory) -> GraphProfile:
    cache, task = tmp_path_factory.mktemp("cache"), resolve(TARGET)
    return profile_task(task, batch=4, busy_ranks=1, cache_dir=cache, policy=QUICK).profile


@pytest.fixture(scope="module")
def record(profile: GraphProfile, tmp_path_factory: pytest.TempPathFactory) -> RunRecord:
    """One step of one rank, with the prediction of a host that was profiled as it is."""
    host = autopar.measure_cluster(1, quick=True, out=tmp_path_factory.mktemp("host") / "c.json")
    found = autopar.plan(profile, host, global_batch=4, objective="time").best
    plan = found.plan.with_predicted(found.price.to_dict())
    out = tmp_path_factory.mktemp("run")
    return autopar.run(plan, TARGET, steps=4, warmup=1, out=out, report=False, quiet=True)


def test_profile_and_run_time_the_same_pass(profile: GraphProfile, record: RunRecord) -> None:
    assert profile.measurement is not None
    assert profile.measurement.pace_s == record.plan.predicted["pace_s"]
    assert record.provenance["pace_s"] > 0
    assert record.slowdown == record.provenance["pace_s"] / profile.measurement.pace_s
    again = GraphProfile.from_dict(profile.to_dict(), "x").measurement
    assert again is not None
    assert again.pace_s == profile.measurement.pace_s


def _at(record: RunRecord, slowdown: float) -> RunRecord:
    pace_s = record.plan.predicted["pace_s"] * slowdown
    return replace(record, provenance={**record.provenance, "pace_s": pace_s})


def test_error_is_told_at_the_pace_of_the_profile(record: RunRecord) -> None:
    step = record.plan.predicted["step_time_s"]["value"]
    slow = replace(_at(record, 1.5), step_times_s=(1.5 * step,))
    assert slow.step_error_at_pace == pytest.approx(0.0, abs=1e-9)
    words = slow.pace_warning()
    assert words is not None
    assert "1.50 times as long" in words
    assert "+0% off" in words
    assert _at(record, 1.2).pace_warning() is None
    unknown = replace(record, provenance={})
    assert unknown.slowdown is None
    assert unknown.step_error_at_pace is None
    assert unknown.pace_warning() is None


def _row(plan: Plan, slowdown: float | None) -> BenchRow:
    return BenchRow(
        plan=plan,
        predicted_s=1.0,
        measured_s=2.0,
        predicted_memory_bytes=1.0,
        measured_memory_bytes=1.0,
        slowdown=slowdown,
    )


def test_bench_says_what_its_errors_are_at_one_pace(record: RunRecord, tmp_path: Path) -> None:
    rows = (_row(record.plan, 2.0), _row(record.plan, 1.6))
    result = BenchResult(task="t", cluster="c", rows=rows)
    assert result.median_abs_rel_error == pytest.approx(0.5)
    assert result.median_abs_rel_error_at_pace == pytest.approx(0.1)
    result.save(tmp_path / "bench.json")
    assert BenchResult.load(tmp_path / "bench.json").rows[1].slowdown == 1.6
    unknown = BenchResult(task="t", cluster="c", rows=(*rows, _row(record.plan, None)))
    assert unknown.median_abs_rel_error_at_pace is None
