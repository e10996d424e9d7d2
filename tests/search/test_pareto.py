"""Pareto sets: dominance, hypervolume, and every engine against brute force."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from autopar.cluster import Cluster
from autopar.core.errors import InfeasibleError, InputError
from autopar.cost import CostModel
from autopar.graph import GraphProfile
from autopar.search import search
from autopar.search.options import SearchOptions
from autopar.search.pareto import search as pareto_module
from autopar.search.pareto.front import covered, hypervolume, knee, undominated
from autopar.search.pareto.genetic import Code
from autopar.search.pareto.members import Members
from autopar.search.pareto.search import choose_engine, pareto_search, parse_objectives
from autopar.search.space.build import Space, build_space
from autopar.search.tune import tune_bucket
from autopar.search.walk.best_first import Priced

from .builders import MB, chain_profile, cluster_of


@pytest.fixture(scope="module")
def profile() -> GraphProfile:
    return chain_profile(
        [1e12, 2e12, 2e12, 1e12],
        parameter_bytes=[40_000_000, 80_000_000, 80_000_000, 40_000_000],
        saved_bytes=300 * MB,
        activation_bytes=20 * MB,
    )


@pytest.fixture(scope="module")
def cluster() -> Cluster:
    return cluster_of(1, 4)


OPTIONS = SearchOptions(global_batch=8, space="full", fix=("offload=off",), precision="float32")


def space_of(profile: GraphProfile, cluster: Cluster) -> tuple[CostModel, Space]:
    model = CostModel(profile, cluster)
    return model, build_space(profile, cluster, OPTIONS)


def test_undominated_keeps_one_of_equals_and_sorts() -> None:
    vectors = np.array([[3.0, 1.0], [1.0, 3.0], [1.0, 3.0], [2.0, 2.0], [3.0, 3.0], [2.0, 4.0]])
    kept = undominated(vectors)
    assert [tuple(vectors[i]) for i in kept] == [(1.0, 3.0), (2.0, 2.0), (3.0, 1.0)]


def test_undominated_equals_brute_force() -> None:
    rng = np.random.default_rng(0)
    vectors = rng.integers(0, 6, size=(60, 3)).astype(float)
    expected = {
        tuple(v) for v in vectors if not any((w <= v).all() and (w < v).any() for w in vectors)
    }
    assert {tuple(vectors[i]) for i in undominated(vectors)} == expected
    assert covered(vectors, vectors[undominated(vectors)]).all()


@pytest.mark.parametrize("dimensions", [2, 3])
def test_hypervolume_equals_counting_cells(dimensions: int) -> None:
    rng = np.random.default_rng(dimensions)
    vectors = rng.integers(0, 5, size=(7, dimensions)).astype(float)
    cells = itertools.product(range(6), repeat=dimensions)
    inside = sum(any((v <= np.array(cell)).all() for v in vectors) for cell in cells)
    assert hypervolume(vectors, np.full(dimensions, 6.0)) == pytest.approx(inside)


def test_knee_is_nearest_to_all_best_values() -> None:
    assert knee(np.array([[0.0, 10.0], [1.0, 1.0], [10.0, 0.0]])) == 1


@pytest.mark.parametrize("text", ["time", "time,time", "time,speed", ""])
def test_lists_that_are_not_objectives_are_refused(text: str) -> None:
    with pytest.raises(InputError):
        parse_objectives(text)


def brute_force(profile: GraphProfile, cluster: Cluster, objectives: tuple[str, ...]) -> Members:
    """Every point with the boundaries that are best for each objective."""
    model, space = space_of(profile, cluster)
    members = Members(model=model, options=OPTIONS, objectives=objectives)
    for point in space.points:
        for one in members.searches(point):
            found = one.solve()
            if found.cuts is not None:
                members.add(point, found.cuts, found.levels)
    return members


@pytest.mark.parametrize("objectives", [("time", "energy"), ("time", "memory")])
def test_exhaustive_equals_brute_force(
    profile: GraphProfile, cluster: Cluster, objectives: tuple[str, ...]
) -> None:
    expected = brute_force(profile, cluster, objectives)
    found = pareto_search(profile, cluster, objectives, OPTIONS, engine="exhaustive")
    vectors = np.array([[plan.values[name] for name in objectives] for plan in found.plans])
    assert covered(expected.vectors, vectors).all()
    assert covered(vectors, expected.vectors).all()
    assert found.proof.complete
    assert found.proof.priced < expected.priced
    assert len(vectors) > 1


def test_sweep_leaves_out_less_memory_than_its_resolution(
    profile: GraphProfile, cluster: Cluster
) -> None:
    expected = brute_force(profile, cluster, ("time", "memory"))
    found = pareto_search(profile, cluster, ("time", "memory"), OPTIONS)
    assert found.proof.engine == "sweep"
    assert found.proof.complete
    vectors = np.array([list(plan.values.values()) for plan in found.plans])
    allowed = expected.vectors * np.array([1.0, 1 / (1 - found.proof.resolution)])
    assert covered(allowed, vectors).all()
    assert 0 < found.proof.gap < 0.1


def test_a_sweep_without_proofs_is_not_called_complete(
    profile: GraphProfile, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    proved = pareto_module.optimum

    def unproved(
        model: CostModel, options: SearchOptions, space: Space
    ) -> tuple[Priced | None, float]:
        best, bound = proved(model, options, space)
        return best, bound * 0.8

    monkeypatch.setattr(pareto_module, "optimum", unproved)
    found = pareto_search(profile, cluster, ("time", "memory"), OPTIONS)
    assert not found.proof.complete
    assert found.proof.open == len(found.plans)
    assert found.proof.gap > 0.1


def test_money_needs_its_own_number_of_devices() -> None:
    """Slow links: more devices are faster and dearer, so every number of devices is a choice."""
    profile = chain_profile([1e12] * 4, parameter_bytes=[400_000_000] * 4)
    cluster = cluster_of(4, 1, inter=2e9)
    found = pareto_search(profile, cluster, ["time", "cost"], OPTIONS)
    best = {name: min(p.values[name] for p in found.plans) for name in ("time", "cost")}
    for name, value in best.items():
        options = SearchOptions(global_batch=8, space="full", objective=name, fix=("offload=off",))
        alone = search(profile, cluster, options).best.price
        one = alone.step_time_s if name == "time" else alone.cost_usd
        assert one is not None
        assert value == pytest.approx(one.value)
    assert len(found.plans) > 1
    assert len({p.ranked.plan.mesh.world_size for p in found.plans}) == len(found.plans)


def test_genetic_search_keeps_the_optima_and_admits_what_is_open(
    profile: GraphProfile, cluster: Cluster
) -> None:
    exact = brute_force(profile, cluster, ("time", "energy"))
    found = pareto_search(profile, cluster, ("time", "energy"), OPTIONS, engine="nsga2")
    again = pareto_search(profile, cluster, ("time", "energy"), OPTIONS, engine="nsga2")
    assert not found.proof.complete
    assert found.proof.hypervolume <= found.proof.hypervolume_bound + 1e-12
    for index, name in enumerate(("time", "energy")):
        least = min(plan.values[name] for plan in found.plans)
        assert least == pytest.approx(exact.vectors[:, index].min())
    assert [p.ranked.plan.hash for p in found.plans] == [p.ranked.plan.hash for p in again.plans]


def test_every_point_has_a_code(profile: GraphProfile, cluster: Cluster) -> None:
    _, space = space_of(profile, cluster)
    code = Code(space.groups)
    for point in itertools.islice(space.points, 0, None, 7):
        assert code.decode(code.encode(point)) == point


def test_engine_follows_objectives_and_size(profile: GraphProfile, cluster: Cluster) -> None:
    _, space = space_of(profile, cluster)
    assert choose_engine(("time", "cost", "memory"), space) == "sweep"
    assert choose_engine(("energy", "memory"), space) == "sweep"
    assert choose_engine(("time", "energy"), space) == "exhaustive"


def test_what_cannot_be_is_said(profile: GraphProfile, cluster: Cluster) -> None:
    with pytest.raises(InputError, match="cannot weigh"):
        pareto_search(profile, cluster, ("time", "energy"), OPTIONS, engine="sweep")
    with pytest.raises(InputError, match="unknown engine"):
        pareto_search(profile, cluster, ("time", "memory"), OPTIONS, engine="magic")
    tight = SearchOptions(global_batch=8, max_memory_bytes=1e6)
    with pytest.raises(InfeasibleError):
        pareto_search(profile, cluster, ("time", "memory"), tight)


def test_a_bucket_size_that_hides_more_is_found() -> None:
    profile = chain_profile([1e12] * 8, parameter_bytes=[200_000_000] * 8)
    cluster = cluster_of(2, 1, inter=10e9)
    options = SearchOptions(global_batch=4, fix=("dp_replicate=2",), precision="float32")
    ranked = search(profile, cluster, options).best
    model = CostModel(profile, cluster)
    tuned = tune_bucket(ranked, model, options)
    assert tuned.after < tuned.before
    assert tuned.ranked.price.step_time_s.value == pytest.approx(tuned.after)
    assert tuned.ranked.plan.bucket_bytes != ranked.plan.bucket_bytes
    same = tune_bucket(ranked, model, options)
    assert same.ranked.plan.bucket_bytes == tuned.ranked.plan.bucket_bytes


def test_no_buckets_no_tuning() -> None:
    profile = chain_profile([1e12] * 4)
    options = SearchOptions(global_batch=4, fix=("world=1",), precision="float32")
    ranked = search(profile, cluster_of(1, 2), options).best
    tuned = tune_bucket(ranked, CostModel(profile, cluster_of(1, 2)), options)
    assert tuned.ranked is ranked
    assert tuned.trials == 0
