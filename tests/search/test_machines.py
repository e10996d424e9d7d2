"""Which machines: the choice equals brute force over all sets, and words name what helps."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from autopar.cluster import Cluster
from autopar.cluster.parse import parse_cluster
from autopar.core.errors import InfeasibleError, InputError
from autopar.search import SearchOptions, search
from autopar.search.machines.choose import (
    MachineChoice,
    choose_machines,
    least_step_s,
    machine_sets,
)
from autopar.search.machines.offers import Offer, Wishes, pareto, pick

from .builders import chain_profile, cluster_of, gpu

PROFILE = chain_profile([5e10] * 4, parameter_bytes=[8_000_000] * 4, batch=2)
FAST = replace(cluster_of(4, 2, device=gpu("fast", peak=2e14, usd=9.0)), name="fast")
SLOW = replace(cluster_of(4, 2, device=gpu("slow", peak=5e13, usd=2.0)), name="slow")
OPTIONS = SearchOptions(global_batch=64)


def choose(wishes: Wishes, *clusters: Cluster, options: SearchOptions = OPTIONS) -> MachineChoice:
    pairs = [(PROFILE, cluster) for cluster in clusters or (FAST, SLOW)]
    return choose_machines(pairs, wishes, options)


def searched(wishes: Wishes, *clusters: Cluster) -> list[Offer]:
    """Every set searched, none skipped."""
    return [
        Offer(
            cluster=each,
            profile=PROFILE,
            steps=wishes.steps(64),
            least_step_s=0.0,
            result=search(PROFILE, each, replace(OPTIONS, top=1)),
        )
        for cluster in clusters
        for each in machine_sets(cluster)
    ]


def test_sets_are_powers_of_two_and_the_given_count() -> None:
    names = [each.name for each in machine_sets(parse_cluster("12x8:h100-sxm"))]
    assert names == [
        "1x8:h100-sxm",
        "2x8:h100-sxm",
        "4x8:h100-sxm",
        "8x8:h100-sxm",
        "12x8:h100-sxm",
    ]
    mixed = parse_cluster("2x4:v100-32gb+2x4:t4")
    assert machine_sets(mixed) == [mixed]
    measured = replace(FAST, measured=True)
    assert machine_sets(measured) == [measured]
    assert machine_sets(FAST)[0].name == "1 of 4 nodes of fast"


@pytest.mark.parametrize("seed", range(8))
def test_choice_equals_brute_force(seed: int) -> None:
    random_ = random.Random(seed)
    clusters = [
        cluster_of(
            random_.choice([1, 3, 4]),
            2,
            device=gpu(f"d{i}", peak=random_.uniform(2e13, 3e14), usd=random_.uniform(1, 20)),
            inter=random_.uniform(1e9, 5e10),
        )
        for i in range(3)
    ]
    every = searched(Wishes(samples=10_000), *clusters)
    times = sorted(o.total_s.value for o in every if o.total_s)
    prices = sorted(o.cost_usd.value for o in every if o.cost_usd)
    wishes = Wishes(
        samples=10_000,
        deadline_s=random_.choice([None, 1.4 * random_.choice(times)]),
        budget_usd=random_.choice([None, 1.1 * random_.choice(prices)]),
    )
    expected = pick(every, wishes, "time")
    if expected is None:
        with pytest.raises(InfeasibleError):
            choose(wishes, *clusters)
        return
    choice = choose(wishes, *clusters)
    assert choice.chosen.cluster.hash == expected.cluster.hash
    assert choice.chosen.result is not None and expected.result is not None
    assert choice.chosen.result.best.name == expected.result.best.name
    assert len(choice.offers) == len(every)
    able = [o for o in every if o.meets(wishes) in ("surely", "probably")]
    front = {o.cluster.hash for o in choice.pareto if o.meets(wishes) in ("surely", "probably")}
    assert front == {o.cluster.hash for o in pareto(able)}


def test_skipping_is_by_proved_bounds() -> None:
    for each in (*machine_sets(FAST), *machine_sets(SLOW)):
        best = search(PROFILE, each, OPTIONS).best
        assert 0 < least_step_s(PROFILE, each, OPTIONS) <= best.price.step_time_s.value
    tight = choose(Wishes(samples=64)).chosen.total_s
    assert tight is not None
    skipped = [o for o in choose(Wishes(deadline_s=tight.high)).offers if o.skipped]
    assert skipped
    assert all(o.reason and o.meets_deadline(Wishes(deadline_s=tight.high)) for o in skipped)


def test_deadline_takes_the_cheapest_budget_the_fastest() -> None:
    every = searched(Wishes(), FAST, SLOW)
    assert choose(Wishes(deadline_s=1e6)).chosen.cluster.name == _least(every, "cost_usd")
    assert choose(Wishes(budget_usd=1e6)).chosen.cluster.name == _least(every, "total_s")
    assert choose(Wishes()).chosen.cluster.name == _least(every, "total_s")


def _least(offers: list[Offer], figure: str) -> str:
    return min(offers, key=lambda o: getattr(o, figure).value).cluster.name


def test_a_range_that_reaches_beyond_the_deadline_is_said_to() -> None:
    totals = sorted(
        (o.total_s for o in searched(Wishes(), FAST, SLOW) if o.total_s), key=lambda e: e.value
    )
    within_value_only = (totals[0].value + totals[0].high) / 2
    choice = choose(Wishes(deadline_s=within_value_only))
    assert choice.chosen.meets(choice.wishes) == "probably"
    assert "reaches beyond the limit" in choice.explanation


def test_surely_comes_before_probably_though_dearer() -> None:
    every = searched(Wishes(), FAST, SLOW)
    cheap = next(o for o in every if o.cluster.name == "slow")
    assert cheap.total_s is not None and cheap.cost_usd is not None
    wishes = Wishes(deadline_s=1.01 * cheap.total_s.value)
    assert cheap.meets(wishes) == "probably"
    chosen = choose(wishes).chosen
    assert chosen.meets(wishes) == "surely"
    assert chosen.cost_usd is not None and chosen.cost_usd.value > cheap.cost_usd.value


def test_steps_cover_all_samples_and_scale_the_figures() -> None:
    one, many = choose(Wishes()), choose(Wishes(samples=1000))
    assert many.chosen.steps == 16  # ceil(1000 / 64)
    assert one.chosen.total_s is not None and many.chosen.total_s is not None
    assert many.chosen.total_s.value == pytest.approx(16 * one.chosen.total_s.value)
    rent = many.chosen.cluster.device_count * 9.0 / 3600
    assert many.chosen.cost_usd is not None
    assert many.chosen.cost_usd.value == pytest.approx(many.chosen.total_s.value * rent)


def test_all_sets_train_with_one_global_batch() -> None:
    choice = choose(Wishes(), options=SearchOptions())
    assert choice.options.global_batch == 16  # the profiled batch of 2 on 8 devices
    assert {o.result.best.plan.global_batch for o in choice.offers if o.result} == {16}


def test_smallest_relaxation_works_and_is_small() -> None:
    fastest = choose(Wishes(samples=10_000)).chosen.total_s
    assert fastest is not None
    with pytest.raises(InfeasibleError) as caught:
        choose(Wishes(samples=10_000, deadline_s=fastest.value / 1.5))
    assert "takes" in caught.value.message and "deadline" in caught.value.message
    assert caught.value.hint is not None and caught.value.hint.startswith("raise --deadline to")
    assert choose(Wishes(samples=10_000, deadline_s=fastest.value * 1.01)).chosen
    with pytest.raises(InfeasibleError, match="costs") as dear:
        choose(Wishes(samples=10_000, budget_usd=1e-6, deadline_s=1e9))
    amount = float(str(dear.value.hint).split("raise --budget to ")[1].split()[0])
    assert choose(Wishes(samples=10_000, budget_usd=amount, deadline_s=1e9)).chosen
    with pytest.raises(InfeasibleError) as both:
        choose(Wishes(samples=10_000, budget_usd=1e-6, deadline_s=1e-6))
    factor = float(str(both.value.hint).split("both limits ")[1].split("-fold")[0])
    assert choose(
        Wishes(samples=10_000, budget_usd=1e-6 * factor, deadline_s=1e-6 * factor)
    ).chosen


def test_without_prices_a_budget_is_not_met_and_a_deadline_takes_fewest_devices() -> None:
    free = cluster_of(4, 2, device=gpu("unpriced", usd=None))
    with pytest.raises(InfeasibleError, match="has no price"):
        choose(Wishes(budget_usd=100.0), free)
    assert choose(Wishes(deadline_s=1e6), free).chosen.cluster.device_count == 2


def test_no_plan_on_any_set_names_the_memory() -> None:
    tiny = cluster_of(2, 2, device=gpu("tiny", memory=2e9))
    huge = chain_profile([5e10], parameter_bytes=[4_000_000_000], batch=2)
    with pytest.raises(InfeasibleError, match="memory") as caught:
        choose_machines([(huge, tiny)], Wishes(deadline_s=1e9), OPTIONS)
    assert caught.value.hint


def test_bad_wishes_are_refused() -> None:
    with pytest.raises(InputError, match="deadline_s"):
        Wishes(deadline_s=0)
    with pytest.raises(InputError, match="no cluster"):
        choose_machines([], Wishes(), OPTIONS)
