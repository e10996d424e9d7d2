"""Where the choice flips, checked by searching on both sides of the flip."""

from __future__ import annotations

from dataclasses import replace

import pytest

from autopar.core.errors import InputError
from autopar.results import SearchResult
from autopar.search import SearchOptions, search, what_if_answer
from autopar.search.explain.change import scaled_cluster
from autopar.search.explain.parts import strategy_name
from autopar.search.questions.breakeven import (
    Effort,
    break_even,
    effort_for,
    flip_until,
)
from autopar.search.questions.flips import BreakEven, bisect

from .builders import chain_profile, cluster_of, gpu

OPTIONS = SearchOptions(global_batch=16, fix=("zero=0", "recompute=none"))
PROFILE = chain_profile([2e11] * 8, parameter_bytes=[200_000_000] * 8, activation_bytes=2e6)
CLUSTER = cluster_of(4, 1, device=gpu(memory=20.4e9))


@pytest.fixture(scope="module")
def result() -> SearchResult:
    return search(PROFILE, CLUSTER, OPTIONS)


def strategy_at(scale: float, quantity: str) -> str:
    changed = scaled_cluster(CLUSTER, quantity, scale)
    return strategy_name(search(PROFILE, changed, replace(OPTIONS, top=1)).best.plan)


def test_bisection_finds_the_edge_from_either_side():
    assert bisect(lambda s: s >= 3.0, 1.0, 16.0) == pytest.approx(3.0, rel=0.02)
    assert bisect(lambda s: s <= 0.2, 1.0, 1 / 16) == pytest.approx(0.2, rel=0.02)


def test_searches_on_both_sides_of_a_flip_disagree(result: SearchResult):
    flips = break_even(result, PROFILE, CLUSTER, "inter_node_bandwidth", OPTIONS)
    assert flips
    for flip in flips:
        assert flip.confirmed
        assert flip.winner is not None
        chosen, further = strategy_name(result.best.plan), strategy_name(flip.winner.plan)
        beyond = flip.scale * (1.1 if flip.scale > 1 else 1 / 1.1)
        inside = flip.scale / (1.1 if flip.scale > 1 else 1 / 1.1)
        assert strategy_at(inside, flip.quantity) == chosen
        assert strategy_at(beyond, flip.quantity) == further != chosen
        assert flip.at == pytest.approx(25e9 * flip.scale)


def test_a_slow_network_makes_another_strategy_win_and_the_text_says_where(result: SearchResult):
    slow = [
        flip
        for flip in break_even(result, PROFILE, CLUSTER, "inter_node_bandwidth", OPTIONS)
        if flip.scale < 1
    ]
    assert len(slow) == 1
    assert strategy_name(result.best.plan) == "dp4"
    assert "pp" in slow[0].text
    assert "below" in slow[0].text
    assert "Gbit/s" in slow[0].text


def test_a_lead_of_less_than_a_percent_is_no_flip(result: SearchResult):
    """Just beyond the flip the new plan is hardly ahead; at a quarter of that it is."""
    flip = break_even(result, PROFILE, CLUSTER, "inter_node_bandwidth", OPTIONS)[0]
    for scale, verdict, opening in (
        (flip.scale, "tie", "Practically a tie: "),
        (flip.scale / 4, "flips", "The choice flips from"),
    ):
        asked = f"inter_node_bandwidth=x{scale:.6f}"
        answer = what_if_answer(asked, result, PROFILE, CLUSTER, OPTIONS)
        assert (answer.verdict, answer.text.startswith(opening)) == (verdict, True)


def test_without_searches_only_known_plans_are_compared(result: SearchResult):
    flips = break_even(result, PROFILE, CLUSTER, "inter_node_bandwidth", OPTIONS, effort="known")
    assert all(not flip.confirmed and "among the plans compared" in flip.text for flip in flips)
    known = {strategy_name(item.plan) for item in result.top} | {
        strategy_name(item.plan) for item in result.baselines.values() if hasattr(item, "plan")
    }
    assert {strategy_name(flip.winner.plan) for flip in flips if flip.winner} <= known


def test_memory_flips_where_the_strategy_no_longer_fits(result: SearchResult):
    flips = break_even(result, PROFILE, CLUSTER, "memory", OPTIONS)
    down = next(flip for flip in flips if flip.scale < 1)
    assert strategy_at(min(1.0, down.scale * 1.1), "memory") == "dp4"
    if down.winner is not None:
        assert strategy_at(down.scale, "memory") == strategy_name(down.winner.plan) != "dp4"


def test_a_flip_is_looked_for_on_the_way_only(result: SearchResult):
    flips = break_even(result, PROFILE, CLUSTER, "inter_node_bandwidth", OPTIONS)
    place = next(flip.scale for flip in flips if flip.scale < 1)

    def until(edge: float) -> BreakEven | None:
        return flip_until(result, PROFILE, CLUSTER, "inter_node_bandwidth", edge, OPTIONS)

    assert until(place * 1.2) is None
    found = until(place / 3)
    assert found is not None
    assert found.scale == pytest.approx(place, rel=0.05)


def test_devices_flip_at_the_first_doubling_with_other_axes(result: SearchResult):
    for flip in break_even(result, PROFILE, CLUSTER, "devices", OPTIONS):
        assert flip.at in (1.0, 2.0, 8.0, 16.0, 32.0, 64.0)
        assert flip.winner is None or flip.winner.plan.mesh != result.best.plan.mesh


def test_unknown_quantities_are_refused(result: SearchResult):
    with pytest.raises(InputError, match="cannot change"):
        break_even(result, PROFILE, CLUSTER, "colour", OPTIONS)


def test_the_best_plans_at_the_ends_find_the_flip_that_searching_finds(result: SearchResult):
    def down(effort: Effort) -> BreakEven:
        flips = break_even(
            result, PROFILE, CLUSTER, "inter_node_bandwidth", OPTIONS, effort=effort
        )
        return next(flip for flip in flips if flip.scale < 1)

    cheap, sure = down("ends"), down("full")
    assert not cheap.confirmed
    assert cheap.scale <= sure.scale * 1.05  # a plan unknown to it may win earlier
    assert cheap.scale > sure.scale / 3


def test_effort_shrinks_with_the_space(result: SearchResult):
    small = result.certificate
    assert effort_for(replace(small, space=100)) == "full"
    assert effort_for(replace(small, space=100_000, partitions_priced=10)) == "ends"
    assert effort_for(replace(small, space=100_000, partitions_priced=100_000)) == "known"
    assert effort_for(replace(small, space=10_000_000, partitions_priced=10)) == "known"
