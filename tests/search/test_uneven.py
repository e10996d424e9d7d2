"""Uneven shares on unlike devices: equal to the price of an even plan where shares are even."""

from __future__ import annotations

import pytest

from autopar.cluster import Cluster
from autopar.cost import CostModel
from autopar.search import SearchOptions, plan_for, search
from autopar.search.mixed_clusters.uneven import best_uneven_split

from .builders import chain_profile, cluster_of, gpu

PROFILE = chain_profile([1e11] * 4, parameter_bytes=[400_000] * 4)


def pair(peak: float, **slow: float) -> Cluster:
    """A device of 1e14 FLOP/s and one of ``peak``."""
    groups = (
        *cluster_of(1, 1, device=gpu("fast", peak=1e14)).groups,
        *cluster_of(1, 1, device=gpu("slow", peak=peak, **slow)).groups,
    )
    return Cluster(name="pair", groups=groups)


@pytest.mark.parametrize("batch", [2, 16])
def test_like_devices_get_like_shares_at_the_price_of_the_even_plan(batch: int) -> None:
    options = SearchOptions(global_batch=batch)
    cluster = pair(1e14)
    split = best_uneven_split(CostModel(PROFILE, cluster), options)
    assert split is not None and len(set(split.microbatches)) == 1
    count, size = split.microbatches[0], split.microbatch_size
    spec = f"dp_replicate=2,microbatches={count},microbatch_size={size}"
    even = plan_for(PROFILE, cluster, spec, options).price.step_time_s.value
    assert split.step_s == pytest.approx(even, rel=1e-6)


def test_shares_follow_speed_and_beat_every_even_plan() -> None:
    cluster = pair(1e14 / 3)
    options = SearchOptions(global_batch=64)
    split = best_uneven_split(CostModel(PROFILE, cluster), options)
    assert split is not None
    samples = [count * split.microbatch_size for count in split.microbatches]
    assert sum(samples) == 64 and samples[0] == pytest.approx(48, abs=2)
    result = search(PROFILE, cluster, SearchOptions(global_batch=64, fix=("pp=1",)))
    assert split.step_s < 0.8 * result.best.price.step_time_s.value
    (words,) = [text for text in result.explanation if text.startswith("Placement.")]
    assert f"{samples[0]} samples on each of 1 fast" in words


def test_a_device_without_room_leaves_no_split() -> None:
    tiny = CostModel(PROFILE, pair(1e14, memory=1e9))
    assert best_uneven_split(tiny, SearchOptions(global_batch=8)) is None
