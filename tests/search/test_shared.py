"""Several workers on one stored study."""

from __future__ import annotations

import multiprocessing
import time
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState, create_trial

from autopar.core.errors import InfeasibleError, InputError
from autopar.cost import CostModel
from autopar.graph import GraphProfile, Measurement
from autopar.search import SearchOptions, search
from autopar.search.ordered import study_name
from autopar.search.space.build import build_space
from autopar.search.stages.partition import PartitionSearch, Solution
from autopar.search.walk.best_first import Walk
from autopar.search.walk.shared import GRACE_S, SharedPoints
from autopar.search.walk.study import StoredStudy, open_storage

from .builders import chain_profile, cluster_of, gpu

PROFILE = chain_profile(
    [1e12, 2e12, 1e12, 3e12, 1e12, 2e12], parameter_bytes=[400_000_000] * 6, saved_bytes=3e8
)
CLUSTER = cluster_of(2, 2, device=gpu(memory=12.8e9))
OPTIONS = SearchOptions(global_batch=8, top=1, fix=("recompute=none", "offload=off"))
ALONE = search(PROFILE, CLUSTER, OPTIONS)


@dataclass
class _Outcome:
    best: str
    value: float
    gap: float
    solved: int


def worker(url: str, barrier: Any, outcomes: Any) -> None:
    """One planning process whose solver is slow enough for the other to take part."""
    count, solve = 0, PartitionSearch.solve

    def slow(self: PartitionSearch, *args: Any, **kwargs: Any) -> Solution:
        nonlocal count
        if not kwargs.get("first"):
            count += 1
            time.sleep(0.1)
        return solve(self, *args, **kwargs)

    PartitionSearch.solve = slow  # type: ignore[method-assign]
    barrier.wait()
    result = search(PROFILE, CLUSTER, replace(OPTIONS, storage=url))
    outcomes.put(
        _Outcome(
            best=result.best.plan.name,
            value=result.best.price.step_time_s.value,
            gap=result.certificate.gap,
            solved=count,
        )
    )


def walk_of(storage: str | None) -> Walk:
    model = CostModel(PROFILE, CLUSTER, "float32")
    options = replace(OPTIONS, storage=storage, precision="float32")
    space = build_space(PROFILE, CLUSTER, options)
    walk = Walk(model=model, options=options, space=space)
    walk.start()
    return walk


def shared_of(url: str) -> tuple[Walk, SharedPoints]:
    walk = walk_of(url)
    walk.shared = StoredStudy(study_name(walk), walk.space, url).shared
    return walk, walk.shared


@pytest.mark.slow
def test_two_processes_on_a_journal_divide_the_points_and_agree(tmp_path: Path):
    url, context = f"journal:{tmp_path / 'study.log'}", multiprocessing.get_context("spawn")
    barrier, outcomes = context.Barrier(2), context.Queue()
    workers = [context.Process(target=worker, args=(url, barrier, outcomes)) for _ in range(2)]
    for process in workers:
        process.start()
    found = [outcomes.get(timeout=60) for _ in workers]
    for process in workers:
        process.join(30)
        assert process.exitcode == 0
    for outcome in found:
        assert outcome.best == ALONE.best.plan.name
        assert outcome.value == pytest.approx(ALONE.best.price.step_time_s.value)
        assert outcome.gap == 0
        assert outcome.solved > 0
    (study,) = optuna.get_all_study_names(open_storage(url))
    trials = optuna.load_study(study_name=study, storage=open_storage(url)).trials
    claimed = [t for t in trials if "worker" in t.user_attrs and t.state != TrialState.FAIL]
    assert len({t.user_attrs["worker"] for t in claimed}) == 2
    assert sum(outcome.solved for outcome in found) == len(claimed)
    assert len({tuple(t.params.items()) for t in claimed}) == len(claimed)


@pytest.mark.parametrize("kind", ["journal:{}/study.log", "sqlite:///{}/study.db"])
def test_a_second_search_takes_over_what_the_first_priced(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    options = replace(OPTIONS, storage=kind.format(tmp_path))
    first = search(PROFILE, CLUSTER, options)
    solved = []
    solve = PartitionSearch.solve

    def counted(self: PartitionSearch, *args: Any, **kwargs: Any) -> Solution:
        if not kwargs.get("first"):
            solved.append(self)
        return solve(self, *args, **kwargs)

    monkeypatch.setattr(PartitionSearch, "solve", counted)
    again = search(PROFILE, CLUSTER, options)
    assert not solved
    assert again.best.plan.hash == first.best.plan.hash == ALONE.best.plan.hash
    assert again.certificate.gap == first.certificate.gap == 0


def test_a_point_that_another_worker_has_is_left_until_its_heart_stops(tmp_path: Path):
    url = f"journal:{tmp_path / 'study.log'}"
    walk, mine = shared_of(url)
    _, other = shared_of(url)
    point = next(walk.space.points)
    number = mine.claim(point)
    assert number is not None
    assert other.claim(point) is None
    mine._note(number, "heartbeat", time.time() - 2 * GRACE_S)
    assert other.claim(point) is not None


def test_running_trials_of_a_killed_search_do_not_count_as_priced(tmp_path: Path):
    url = f"journal:{tmp_path / 'study.log'}"
    walk, shared = shared_of(url)
    for point in islice(walk.space.points, 40):
        shared.study.add_trial(
            create_trial(
                state=TrialState.RUNNING,
                params=point.params(),
                distributions=shared.distributions,
                user_attrs={"worker": "killed", "heartbeat": time.time() - 2 * GRACE_S},
            )
        )
    result = search(PROFILE, CLUSTER, replace(OPTIONS, storage=url, precision="float32"))
    assert result.best.plan.name == ALONE.best.plan.name
    assert result.study_name == shared.study.study_name


def test_results_of_other_workers_cut_the_walk_short(tmp_path: Path):
    url = f"journal:{tmp_path / 'study.log'}"
    walk, _ = shared_of(url)
    _, other = shared_of(url)
    best = walk_of(None)
    items = []
    while (item := best.next()) is not None:
        items.append(item)
    winner = min(items, key=lambda item: item.value)
    number = other.claim(winner.point)
    assert number is not None
    found = Solution(
        cuts=winner.cuts, value=winner.value, bound=winner.value, levels=winner.levels
    )
    other.finish(number, winner.point, found, "winner")
    assert walk.next() == winner
    assert walk.best == winner.value


def test_a_new_measurement_is_a_new_study():
    def name(profile: GraphProfile) -> str:
        model = CostModel(profile, CLUSTER, "float32")
        space = build_space(profile, CLUSTER, OPTIONS)
        return study_name(Walk(model=model, options=OPTIONS, space=space))

    measured = [
        replace(
            PROFILE,
            measurement=Measurement(
                device="elsewhere",
                busy_ranks=1,
                threads=1,
                curves={},
                composition=(),
                optimizer_s=seconds,
                optimizer_s_per_byte=0.0,
                zero_grad_s=0.0,
                resident_bytes=0.0,
                spread=0.1,
            ),
        )
        for seconds in (1.0, 2.0)
    ]
    assert len({profile.fingerprint for profile in (PROFILE, *measured)}) == 1
    assert len({name(profile) for profile in (PROFILE, *measured)}) == 3
    assert name(measured[0]) == name(replace(measured[0]))


def test_a_new_calibration_is_a_new_study():
    walk = walk_of(None)
    before = study_name(walk)
    assert study_name(walk_of(None)) == before
    shipped = walk.model.compute.calibration
    walk.model.compute.calibration = replace(shipped, factors={"": {"flop": 2.0}})
    assert study_name(walk) != before


@pytest.mark.parametrize("url", ["journal:/no/such/folder/x.log", "sqlite:////no/such/x.db", "x"])
def test_storages_that_cannot_be_opened(url: str):
    with pytest.raises(InputError, match="cannot open study storage") as caught:
        search(PROFILE, CLUSTER, replace(OPTIONS, storage=url))
    missing_folder = "/no/such" in url
    assert ("mkdir -p /no/such" if missing_folder else "journal:") in (caught.value.hint or "")
    assert ("no folder /no/such" if missing_folder else "not a URL") in caught.value.message


def test_nothing_feasible_is_said_with_a_storage_too(tmp_path: Path):
    options = replace(OPTIONS, storage=f"journal:{tmp_path / 's.log'}", max_memory_bytes=1e6)
    with pytest.raises(InfeasibleError):
        search(PROFILE, CLUSTER, options)
