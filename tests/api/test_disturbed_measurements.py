"""What was measured beside other programs says so, and is measured again once they have gone."""

from dataclasses import replace
from pathlib import Path

import pytest

import autopar
from autopar.api import clusters
from autopar.api.places import cluster_path
from autopar.cluster import Cluster
from autopar.cluster.parse import parse_cluster
from autopar.core.host_watch import HostWatch
from autopar.graph import GraphProfile
from autopar.profiler import profile_task
from autopar.profiler.timing.policy import MeasurePolicy
from autopar.tasks.resolve import resolve

TARGET = "zoo:mlp?inputs=8&width=8&depth=2&classes=2"


@pytest.fixture
def measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A stored cluster whose measurement was disturbed; the list counts new measurements."""
    monkeypatch.chdir(tmp_path)
    again: list[int] = []

    def measure(ranks: int, **_: object) -> Cluster:
        again.append(ranks)
        return _cluster(0.0)

    monkeypatch.setattr(clusters, "measure_cluster", measure)
    _cluster(0.4).save(cluster_path("local-2"))
    return again


def _cluster(others_share: float) -> Cluster:
    noted = {"measurement": {"others_share": others_share}, "host_key": clusters._host_key()}
    return replace(parse_cluster("1x2:v100-16gb-pcie"), name="local:2", provenance=noted)


@pytest.mark.parametrize(("now", "expected"), [(0.0, [2]), (0.5, [])])
def test_cluster_is_measured_again_when_the_host_is_quiet(
    measured: list[int], monkeypatch: pytest.MonkeyPatch, now: float, expected: list[int]
) -> None:
    monkeypatch.setattr(HostWatch, "others", lambda self: now)
    found = clusters.resolve_cluster("local:2")
    assert measured == expected
    assert found.others_share == (0.0 if expected else 0.4)


def test_plan_says_that_its_figures_were_disturbed(tmp_path: Path) -> None:
    profile = _profile(tmp_path, measure=False)
    best = autopar.plan(profile, _cluster(0.4), global_batch=8).best
    assert any("cluster local:2" in a and "40%" in a for a in best.price.assumptions)
    calm = autopar.plan(profile, _cluster(0.01), global_batch=8).best
    assert not any("cluster local:2" in a for a in calm.price.assumptions)


def test_profile_is_measured_again_when_the_host_is_quiet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(HostWatch, "others", lambda self: 0.3)
    first = _profile(tmp_path)
    assert first.others_share == 0.3
    assert any("30%" in text for text in first.provenance["warnings"])
    assert _profile(tmp_path).provenance["created"] == first.provenance["created"]
    monkeypatch.setattr(HostWatch, "others", lambda self: 0.0)
    second = _profile(tmp_path)
    assert second.others_share == 0.0 and not second.provenance["warnings"]


QUICK = MeasurePolicy(warmup=1, fewest_repeats=3, most_repeats=4, point_s=0.01, noisy_spread=1e9)


def _profile(folder: Path, *, measure: bool = True) -> GraphProfile:
    cache, task = folder / "cache", resolve(TARGET)
    return profile_task(
        task, batch=4, busy_ranks=1, cache_dir=cache, measure=measure, policy=QUICK
    ).profile
