"""What a user asks of a search: specific plans, baselines, reasons, relaxations, speed."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import optuna
import pytest

from autopar.core.errors import InfeasibleError, InputError
from autopar.results import Rejection, SearchResult
from autopar.search import (
    SearchOptions,
    parse_spec,
    plan_for,
    search,
    spread,
)

from .builders import a100_cluster, cluster_of, gpt3, gpu, tied_skips

PROFILE, TIGHT = tied_skips()
OPTIONS = SearchOptions(global_batch=16)


@pytest.fixture(scope="module")
def tight() -> SearchResult:
    return search(PROFILE, TIGHT, OPTIONS)


def test_gpt3_on_1024_devices_is_proved_best_quickly():
    profile, cluster = gpt3(), a100_cluster()
    began = time.process_time()
    result = search(profile, cluster, SearchOptions(global_batch=1536, top=5))
    spent = time.process_time() - began
    assert result.certificate.gap == 0
    assert result.certificate.space > 50_000
    assert 3 <= len(result.top) <= 5
    assert spent < 15.0  # 1.5-2.5 s on a quiet core


def test_a_point_by_specification():
    item = plan_for(PROFILE, cluster_of(2, 2), "dp_replicate=2,pp=2,schedule=1f1b,microbatches=4",
                    OPTIONS)  # fmt: skip
    plan = item.plan
    assert (plan.mesh.dp_replicate, plan.mesh.pp, plan.schedule) == (2, 2, "1f1b")
    assert (plan.microbatches, plan.microbatch_size, plan.global_batch) == (4, 2, 16)
    same = plan_for(PROFILE, cluster_of(2, 2), {"dp": 2, "pp": 2, "m": 4}, OPTIONS)
    assert same.plan.hash == plan.hash


def test_blocks_are_the_units_of_sharded_weights():
    spec = "dp_shard=2,zero=3,pp=2,schedule=1f1b,microbatches=4"
    plan = plan_for(PROFILE, cluster_of(2, 2), spec, OPTIONS).plan
    units = [unit for stage in plan.stages for unit in stage.units]
    assert units == [(block.first_op, block.stop_op) for block in PROFILE.blocks]
    whole = plan_for(PROFILE, cluster_of(2, 2), "dp=2,pp=2,m=4", OPTIONS).plan
    assert not any(stage.units for stage in whole.stages)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("pq=2", "unknown axis"),
        ("pp", "not axis=value"),
        ("pp=0", "whole number"),
        ("pp=2,pp=3", "both 2 and 3"),
        ("schedule=1f2b", "unknown schedule"),
        ("", "empty"),
        ("tp=2", "no pair of products"),
        ("pp=8", "needs 8 devices"),
        ("dp=3", "not divisible"),
        ("pp=2,m=5", "samples"),
        ("pp=2,schedule=none", "needs pp=1"),
        ("schedule=gpipe", "needs pp of 2"),
        ("pp=4,schedule=interleaved,m=8", "more than the 5 blocks"),
        ("pp=2,schedule=interleaved,m=1", "microbatches"),
        ("world=3,dp=2", "does not equal"),
    ],
)
def test_bad_specifications_say_what_is_wrong(spec: str, words: str):
    with pytest.raises(InputError, match=words) as caught:
        plan_for(PROFILE, TIGHT, spec, OPTIONS)
    assert caught.value.hint


def test_unknown_words_name_the_closest():
    with pytest.raises(InputError) as caught:
        parse_spec("microbatch=4")
    assert "microbatches" in (caught.value.hint or "")
    for kwargs in ({"objective": "tme"}, {"sync": "al_reduce"}, {"top": 0}, {"global_batch": 0},
                   {"max_memory_bytes": 0}):  # fmt: skip
        with pytest.raises(InputError):
            SearchOptions(**kwargs)  # type: ignore[arg-type]


def test_fix_and_forbid_shape_the_space():
    fixed = search(PROFILE, cluster_of(2, 2), SearchOptions(global_batch=16, fix=("pp=2", "dp=1")))
    assert all(item.plan.mesh.pp == 2 for item in fixed.top)
    assert fixed.certificate.rejected["not what --fix asks for"] > 0
    free = search(PROFILE, cluster_of(2, 2), SearchOptions(global_batch=16, forbid=("pp=1",)))
    assert all(item.plan.mesh.pp > 1 for item in free.top)


def test_baselines_are_always_there(tight: SearchResult):
    assert set(tight.baselines) == {
        "single device", "plain DDP", "plain pipeline", "DDP + recompute", "ZeRO-3 (FSDP)",
        "tp in the node, pp, dp",
    }  # fmt: skip
    item = tight.baselines["plain DDP"]
    assert isinstance(item, Rejection)
    assert "GiB" in item.detail
    roomy = search(PROFILE, cluster_of(2, 2), OPTIONS).baselines
    assert [name for name, item in roomy.items() if isinstance(item, Rejection)] == [
        "tp in the node, pp, dp"  # one op a block, without a pair of products to divide
    ]


def test_results_are_deterministic_and_survive_the_file(tight: SearchResult, tmp_path: Path):
    again = search(PROFILE, TIGHT, OPTIONS)
    assert [i.plan.hash for i in again.top] == [i.plan.hash for i in tight.top]
    assert again.certificate == tight.certificate
    tight.save(tmp_path / "result.json")
    loaded = SearchResult.load(tmp_path / "result.json")
    assert loaded.best.price == tight.best.price
    assert loaded.explanation == tight.explanation


def test_the_study_holds_every_priced_point(tight: SearchResult):
    assert tight.study is not None
    assert len(tight.study.trials) == tight.certificate.priced
    assert tight.study.best_value == pytest.approx(tight.best.price.step_time_s.value)
    assert tight.study.best_params["pp"] == tight.best.plan.mesh.pp


def test_a_search_loads_optuna_only_for_a_study():
    """In a process of its own: loading it takes longer than many a search."""
    code = (
        "import sys; from search.builders import a100_cluster, chain_profile\n"
        "from autopar.search import SearchOptions, search\n"
        "profile = chain_profile([1e12] * 4)\n"
        "found = search(profile, a100_cluster(1), SearchOptions(global_batch=8))\n"
        "before = 'optuna' in sys.modules\n"
        "print(before, len(found.study.trials) == found.certificate.priced > 0)"
    )
    tests = Path(__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tests, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["False", "True"]


def test_storage_keeps_the_study(tmp_path: Path):
    url = f"sqlite:///{tmp_path / 'study.db'}"
    result = search(PROFILE, TIGHT, SearchOptions(global_batch=16, top=1, storage=url))
    stored = optuna.load_study(study_name=result.study_name, storage=url)
    assert stored.best_value == pytest.approx(result.best.price.step_time_s.value)
    with pytest.raises(InputError, match="storage"):
        search(PROFILE, TIGHT, SearchOptions(global_batch=16, storage="nonsense://x"))


def test_nothing_fits_names_the_constraint_and_a_relaxation_that_works():
    options = SearchOptions(global_batch=16, max_memory_bytes=2e9)
    with pytest.raises(InfeasibleError, match="pipeline rank") as caught:
        search(PROFILE, TIGHT, options)
    hint = caught.value.hint or ""
    size = float(hint.split("raise --max-memory to ")[1].split(" GiB")[0])
    search(PROFILE, TIGHT, SearchOptions(global_batch=16, max_memory_bytes=size * 1024**3))


def test_relaxations_drop_a_wish_or_add_devices():
    with pytest.raises(InfeasibleError) as caught:
        wishes = ("pp=1", "dp_shard=1", "offload=off")
        room = cluster_of(2, 2, device=gpu(memory=10e9))
        search(PROFILE, room, SearchOptions(global_batch=16, fix=wishes))
    assert "drop --fix pp=1" in (caught.value.hint or "")
    small = cluster_of(1, 1, device=gpu(memory=4e9))
    with pytest.raises(InfeasibleError) as caught:
        search(PROFILE, small, SearchOptions(global_batch=16))
    assert "use devices with at least" in (caught.value.hint or "")
    nodes = cluster_of(1, 2, device=gpu(memory=7.4e9))
    with pytest.raises(InfeasibleError) as caught:
        search(PROFILE, nodes, SearchOptions(global_batch=16))
    assert "use 4 devices" in (caught.value.hint or "")
    search(PROFILE, cluster_of(2, 2, device=gpu(memory=7.4e9)), SearchOptions(global_batch=16))


def test_an_empty_space_and_a_missing_peak_are_named():
    with pytest.raises(InfeasibleError, match="none of the") as caught:
        search(PROFILE, TIGHT, SearchOptions(global_batch=16, fix=("pp=3",)))
    assert "drop --fix pp=3" in (caught.value.hint or "")
    with pytest.raises(InfeasibleError, match="no peak for bfloat16"):
        search(PROFILE, TIGHT, SearchOptions(global_batch=16, precision="bfloat16"))


def test_spread_goes_from_the_best_to_slow_ones():
    plans = spread(PROFILE, cluster_of(2, 2), OPTIONS, 6)
    times = [item.price.step_time_s.value for item in plans]
    assert len({item.plan.hash for item in plans}) == len(plans) == 6
    assert times == sorted(times)
    assert times[-1] > 1.5 * times[0]


def test_objectives_disagree_when_they_should():
    profile, cluster = PROFILE, cluster_of(2, 2)
    results = {
        goal: search(profile, cluster, SearchOptions(global_batch=16, objective=goal, top=1)).best
        for goal in ("time", "memory", "cost", "energy")
    }
    smallest = results["memory"].price.peak_memory_bytes.value
    assert smallest < results["time"].price.peak_memory_bytes.value
    assert results["cost"].plan.world_size < results["time"].plan.world_size


@pytest.mark.parametrize(("text", "value"), [("sp=true", "on"), ("offload=False", "off")])
def test_switches_take_other_words_for_on_and_off(text: str, value: str):
    assert list(parse_spec(text).values()) == [value]
