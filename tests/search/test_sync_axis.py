"""Sync modes in a search: who competes, what wins on a slow link, what the user is told."""

from __future__ import annotations

from dataclasses import replace

import pytest

from autopar.core.errors import InfeasibleError, InputError
from autopar.results import SearchResult
from autopar.search import SearchOptions, search
from autopar.sync import parse_sync

from .builders import chain_profile, cluster_of

PROFILE = chain_profile([1e12] * 4, parameter_bytes=[400_000_000] * 4, saved_bytes=3e8)
DATA_PARALLEL = ("pp=1", "tp=1", "cp=1")
SLOW, FAST = cluster_of(4, 1, inter=1e8), cluster_of(4, 1, inter=1e12)


def find(
    sync: str, objective: str = "time-to-target", *, fast: bool = False, space: str = "auto"
) -> SearchResult:
    options = SearchOptions(
        global_batch=16,
        objective=objective,
        sync=sync,
        fix=DATA_PARALLEL,
        space=space,
        top=5,
    )
    return search(PROFILE, FAST if fast else SLOW, options)


def value(result: SearchResult) -> float:
    price = result.best.price
    return price.step_time_s.value * price.steps_multiplier.value


def test_a_slow_link_pays_for_more_steps_and_a_fast_one_does_not():
    exact, slow = find("exact"), find("any")
    assert exact.certificate.gap == slow.certificate.gap == 0
    assert exact.best.plan.sync == "all_reduce"
    assert not parse_sync(slow.best.plan.sync).exact
    assert slow.best.plan.sync in slow.best.name
    assert value(slow) < value(exact)
    assert slow.best.price.steps_multiplier.value > 1
    assert find("any", fast=True).best.plan.sync == "all_reduce"


@pytest.mark.parametrize("objective", ["time", "time-to-target", "memory"])
def test_exact_never_changes_the_mathematics(objective: str):
    result = find("exact", objective)
    assert {item.plan.sync for item in result.top} == {"all_reduce"}
    assert result.best.price.steps_multiplier.value == 1
    assert not any("mathematics" in text for text in result.warnings)


def test_any_adds_nothing_to_objectives_that_do_not_count_steps():
    assert SearchOptions(sync="any").sync_modes() == ("all_reduce",)
    result = find("any", "time")
    assert result.best.plan == find("exact", "time").best.plan
    assert "--sync any compared all_reduce only" in result.warnings[0]
    assert "use --objective time-to-target, or name the modes" in result.warnings[0]
    others = (find("exact", "time"), find("any"))
    assert not any("--sync any" in text for other in others for text in other.warnings)


def test_the_best_of_all_modes_is_the_best_of_each_alone():
    modes = SearchOptions(sync="any", objective="time-to-target").sync_modes()
    # one rank a node: there are no two levels to average over
    alone = {mode: value(find(mode)) for mode in modes if not mode.startswith("hierarchical")}
    together = find("any")
    assert value(together) == pytest.approx(min(alone.values()), rel=1e-9)
    assert alone[together.best.plan.sync] == pytest.approx(value(together), rel=1e-9)


def test_a_rare_average_is_as_good_as_no_link_and_keeps_whole_states():
    """Four ranks whose link carries almost nothing compute four times as fast as one."""
    rare, exact = find("local_sgd:1000", "time").best, find("exact", "time").best
    assert rare.plan.sync == "local_sgd:1000"
    assert (rare.plan.mesh.dp_replicate, rare.plan.zero) == (4, 0)
    # 2 * 3/4 * 1.6 GB over 0.08 GB/s every thousandth step
    assert rare.price.breakdown.gradient_sync_s == pytest.approx(0.03, rel=0.01)
    assert rare.price.step_time_s.value < 0.3 * exact.price.step_time_s.value


def test_a_named_mode_under_time_is_warned_about():
    warned = [text for text in find("all_reduce,diloco", "time").warnings if "time-to" in text]
    assert len(warned) == 1
    assert "diloco:100 change the mathematics" in warned[0]
    assert not any("time-to" in text for text in find("all_reduce,diloco").warnings)


def test_a_best_plan_that_changes_the_mathematics_says_how_sure_its_worth_is():
    result = find("diloco,all_reduce")
    (text,) = [text for text in result.warnings if "the best plan changes" in text]
    assert "diloco:100, periodic" in text
    assert "1.2 times the steps to the same loss, 0.9 to 3 (assumed; Douillard" in text
    quiet = find("diloco,all_reduce", fast=True)
    assert quiet.best.plan.sync == "all_reduce"
    assert not any("mathematics" in text for text in quiet.warnings)


def test_an_unknown_mode_is_an_error_with_the_closest_name():
    with pytest.raises(InputError, match="unknown sync mode") as caught:
        SearchOptions(sync="exact_reduce,all_reduse")
    assert caught.value.hint
    with pytest.raises(InputError) as caught:
        SearchOptions(sync="local_sdg:8")
    assert "local_sgd" in (caught.value.hint or "")
    with pytest.raises(InputError, match="no sync mode"):
        SearchOptions(sync=" , ")


def test_modes_are_only_planned_for_ranks_that_can_synchronise_so():
    two_levels = cluster_of(2, 2)
    options = SearchOptions(
        global_batch=16, objective="time-to-target", sync="hierarchical,ps_sync:3", top=20
    )
    result = search(PROFILE, two_levels, options)
    assert result.certificate.gap == 0
    assert result.certificate.rejected["sync mode does not fit the ranks"] > 0
    assert all(item.plan.mesh.dp_replicate == 4 for item in result.top)
    with pytest.raises(InfeasibleError, match="can synchronise by hierarchical:8") as caught:
        search(PROFILE, cluster_of(1, 4), replace(options, sync="hierarchical"))
    assert "--sync" in (caught.value.hint or "")


def test_state_is_not_in_host_memory_when_servers_hold_it():
    result = search(
        PROFILE, FAST, SearchOptions(global_batch=16, sync="ps_sync", fix=DATA_PARALLEL, top=50)
    )
    assert {item.plan.offload for item in result.top} == {False}
    assert result.certificate.rejected["parameter servers hold the optimizer state"] > 0


def test_host_memory_is_a_choice_of_plans_that_run():
    result = find("exact", "memory", space="runnable")
    assert any(item.plan.offload for item in result.top)
