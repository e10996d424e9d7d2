"""profile_task from end to end: real busy ranks, cache, resume, and what goes wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from profiler_cases import task_of
from torch import nn

from autopar.core.errors import EnvironmentUnableError, InputError
from autopar.graph import GraphProfile
from autopar.profiler import ProfileOutcome, profile_task
from autopar.profiler.timing import launch
from autopar.profiler.timing import task as task_module
from autopar.profiler.timing.points import PointStore
from autopar.profiler.timing.policy import MeasurePolicy, microbatch_sizes
from autopar.tasks import resolve, small_target, zoo_names
from autopar.trace import build_model

QUICK = MeasurePolicy(warmup=1, fewest_repeats=3, most_repeats=4, point_s=0.01, noisy_spread=1e9)


def profiled(task, cache: Path, **options) -> ProfileOutcome:
    return profile_task(
        task, batch=2, busy_ranks=1, cache_dir=cache, policy=QUICK, **{"progress": None} | options
    )


@pytest.fixture(scope="module")
def mlp(tmp_path_factory):
    """The MLP measured by two busy ranks, with the folder of its cache and its progress."""
    cache = tmp_path_factory.mktemp("cache")
    steps: list[tuple[str, int, int]] = []
    outcome = profile_task(
        resolve(small_target("mlp")),
        batch=2,
        busy_ranks=2,
        cache_dir=cache,
        policy=QUICK,
        progress=lambda *step: steps.append(step),
    )
    return outcome, cache, steps


@pytest.fixture
def no_ranks(monkeypatch):
    """Fails the test when anything is measured."""

    def refuse(*args, **options):
        raise AssertionError("something was measured again")

    monkeypatch.setattr(task_module, "BusyRanks", refuse)


def test_measured_profile_has_curves_for_every_block(mlp):
    outcome, _, steps = mlp
    found = outcome.profile.measurement
    assert not outcome.from_cache and not [
        w for w in outcome.warnings if "other programs" not in w
    ]
    assert found is not None and found.busy_ranks == 2
    assert set(found.curves) == {b.signature for b in outcome.profile.blocks}
    for curve in found.curves.values():
        assert [p[0] for p in curve.points] == [1.0, 2.0]
        assert all(p[1] > 0 and p[2] > 0 for p in curve.points)
    assert set(found.again) == set(found.curves)  # hooks around every saved tensor take time
    assert max(full for full, _ in found.again.values()) > 1e-5
    assert [s for s, _ in found.composition] == [1.0, 2.0]
    assert all(0.05 < factor < 20 for _, factor in found.composition)
    assert found.optimizer_s > 0 and found.optimizer_s_per_byte > 0
    assert found.accumulate_s_per_byte > 0 and found.zero_grad_s > 0
    assert 50e6 < found.resident_bytes < 5e9
    assert {stage for stage, _, _ in steps} >= {"trace", "count", "measure"}
    assert all(done <= total for _, done, total in steps)


def test_profile_survives_its_file(mlp, tmp_path):
    profile = mlp[0].profile
    profile.save(tmp_path / "p.json")
    assert GraphProfile.load(tmp_path / "p.json") == profile


def test_second_profile_comes_from_the_cache(mlp, no_ranks):
    outcome, cache, _ = mlp
    again = profile_task(
        resolve(small_target("mlp")), batch=2, busy_ranks=2, cache_dir=cache, policy=QUICK
    )
    assert again.from_cache
    assert again.profile == outcome.profile


def test_interrupted_measuring_resumes(mlp, tmp_path, no_ranks):
    outcome, cache, _ = mlp
    (points,) = cache.glob("points-*.json")
    (tmp_path / points.name).write_text(points.read_text())
    again = profile_task(
        resolve(small_target("mlp")), batch=2, busy_ranks=2, cache_dir=tmp_path, policy=QUICK
    )
    assert again.profile.measurement == outcome.profile.measurement
    assert list(tmp_path.glob("profile-*.json"))


@pytest.mark.parametrize("text", ["", "{", '{"schema": "autopar.graph_profile"}', "[]", "\x00"])
def test_damaged_cache_is_ignored_with_a_warning(tmp_path, text):
    task = resolve(small_target("mlp"))
    profiled(task, tmp_path, measure=False)
    (file,) = tmp_path.glob("profile-*.json")
    file.write_text(text)
    again = profiled(task, tmp_path, measure=False)
    assert not again.from_cache
    assert any("damaged" in warning for warning in again.warnings)
    assert profiled(task, tmp_path, measure=False).from_cache


@pytest.mark.parametrize("results", [[1, 2], {"block:x:1": 3}, None])
def test_damaged_points_are_forgotten_with_a_warning(tmp_path, results):
    file = tmp_path / "points-1.json"
    PointStore(file).put("block:x:1", {"forward_s": 1.0})
    assert PointStore(file).value("block", "x", 1) == {"forward_s": 1.0}
    file.write_text(json.dumps(json.loads(file.read_text()) | {"results": results}))
    store = PointStore(file)
    assert store.results == {}
    assert "damaged" in store.warnings[0]
    assert store.value("block", "x", 1) is None


def test_cache_that_cannot_be_written_is_a_warning(tmp_path):
    (tmp_path / "file").write_text("")
    outcome = profiled(resolve(small_target("mlp")), tmp_path / "file", measure=False)
    assert any("not cached" in warning for warning in outcome.warnings)


@pytest.mark.parametrize("name", zoo_names())
def test_parameters_agree_exactly(name, tmp_path):
    task = resolve(small_target(name))
    profile = profiled(task, tmp_path, device="h100-sxm").profile
    model = build_model(task)
    assert profile.parameter_count == sum(p.numel() for p in model.parameters())
    assert set(profile.parameters) == {n for n, _ in model.named_parameters()}
    assert profile.buffer_bytes == sum(b.numel() * b.element_size() for b in model.buffers())
    assert profile.measurement is None and profile.device == "h100-sxm"


@pytest.mark.parametrize(
    ("optimizer", "ratio"),
    [
        (lambda p: torch.optim.SGD(p, lr=0.1), 0.0),
        (lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9), 1.0),
        (torch.optim.AdamW, 2.0),
        (lambda p: torch.optim.AdamW(p, amsgrad=True), 3.0),
    ],
)
def test_optimizer_state_is_what_a_step_leaves(optimizer, ratio, tmp_path):
    task = task_of(lambda: nn.Linear(8, 4), optimizer=optimizer)
    state = profiled(task, tmp_path, measure=False).profile.optimizer
    assert state.state_bytes_per_parameter_byte == ratio


def test_task_object_with_local_optimizer_class_is_measured_without_it(tmp_path):
    class Plain(torch.optim.SGD):
        pass

    task = task_of(lambda: nn.Linear(8, 4), optimizer=lambda p: Plain(p, lr=0.1))
    outcome = profiled(task, tmp_path)
    assert any("optimizer" in warning for warning in outcome.warnings)
    assert outcome.profile.measurement.curves


def test_rank_that_dies_leaves_a_warning_and_no_cached_profile(tmp_path, monkeypatch):
    class Fragile(launch.BusyRanks):
        def time(self, points):
            for number, row in enumerate(super().time(points)):
                yield row
                if number == 1:
                    self._processes[0].kill()

    monkeypatch.setattr(task_module, "BusyRanks", Fragile)
    slow = MeasurePolicy(warmup=1, fewest_repeats=3, point_s=0.3, most_repeats=10**6)
    outcome = profile_task(
        task_of(lambda: nn.Linear(8, 4)), batch=2, busy_ranks=1, cache_dir=tmp_path, policy=slow
    )
    assert any("killed by signal 9" in warning for warning in outcome.warnings)
    assert not list(tmp_path.glob("profile-*.json"))
    assert list(tmp_path.glob("points-*.json"))


def test_noisy_host_is_a_warning(tmp_path):
    policy = MeasurePolicy(
        warmup=1, fewest_repeats=3, most_repeats=4, point_s=0.01, noisy_spread=-1.0
    )
    outcome = profile_task(
        task_of(lambda: nn.Linear(8, 4)), batch=1, busy_ranks=1, cache_dir=tmp_path, policy=policy
    )
    assert any("quiet host" in warning for warning in outcome.warnings)


def test_model_too_large_for_memory_is_counted_not_timed(tmp_path, no_ranks):
    target = "zoo:gpt?layers=2&hidden=65536&heads=64&vocab=1000&seq=16"
    outcome = profiled(resolve(target), tmp_path)
    assert outcome.profile.measurement is None
    assert any("too large" in warning for warning in outcome.warnings)
    assert outcome.profile.parameter_count > 1e11


def test_smallest_microbatch_of_batch_norm_over_one_value(tmp_path):
    def model():
        return nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Linear(8, 4))

    profile = profiled(task_of(model), tmp_path, measure=False).profile
    assert profile.smallest_microbatch == 2
    plain = profiled(task_of(lambda: nn.Linear(8, 4)), tmp_path, measure=False).profile
    assert plain.smallest_microbatch == 1


def test_microbatch_sizes():
    assert microbatch_sizes(1, 1) == (1,)
    assert microbatch_sizes(1, 8) == (1, 2, 4, 8)
    assert microbatch_sizes(2, 12) == (2, 4, 8, 12)


@pytest.mark.parametrize("wrong", [{"batch": 0}, {"busy_ranks": 0}])
def test_numbers_below_one_are_refused(tmp_path, wrong):
    with pytest.raises(InputError, match="at least 1"):
        profile_task(task_of(lambda: nn.Linear(8, 4)), cache_dir=tmp_path, **wrong)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_cuda_without_gpu_is_an_environment_error(tmp_path):
    with pytest.raises(EnvironmentUnableError, match="no GPU"):
        profile_task(task_of(lambda: nn.Linear(8, 4)), device="cuda", cache_dir=tmp_path)


def test_broken_optimizer_factory_is_a_bad_input(tmp_path):
    task = task_of(lambda: nn.Linear(8, 4), optimizer=lambda p: None)
    with pytest.raises(InputError, match="optimizer"):
        profiled(task, tmp_path, measure=False)


@pytest.mark.slow
def test_gpt3_175b_profiles_within_two_minutes(tmp_path):
    import time

    started = time.monotonic()
    target = "zoo:gpt?layers=96&hidden=12288&heads=96&seq=2048&vocab=51200"
    profile = profiled(resolve(target), tmp_path, device="a100-80gb-sxm").profile
    profile.save(tmp_path / "gpt3.json")
    assert time.monotonic() - started < 120
    assert 174e9 < profile.parameter_count < 176e9
    assert profile.unique_blocks == 3
    tokens = 2 * 2048
    dense = 6 * tokens * profile.parameter_count
    total = profile.forward_flop.at(2) + profile.backward_flop.at(2)
    assert dense < total < 1.1 * dense
