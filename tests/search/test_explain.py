"""The reasons of a choice, as a reader meets them: verdict first, then what limits it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from autopar.results import CostBreakdown, RankedPlan, Rejection, SearchResult
from autopar.search import SearchOptions, search
from autopar.search.explain.choice import compare, layout_words
from autopar.search.explain.parts import difference_words, differences, part_name
from autopar.search.questions.reasons import Explainer, binding, reasons
from autopar.search.questions.sensitivity import Repricer

from .builders import chain_profile, cluster_of, gpu

PROFILE = chain_profile(
    [1e12, 2e12, 1e12, 3e12, 1e12], parameter_bytes=[400_000_000] * 5, saved_bytes=3e8
)
TIGHT = cluster_of(2, 2, device=gpu(memory=12.6e9))
OPTIONS = SearchOptions(global_batch=16, fix=("zero=0", "offload=off"))
CHATTY = chain_profile([2e11] * 6, parameter_bytes=[400_000_000] * 6)
NODES = cluster_of(4, 1)


@pytest.fixture(scope="module")
def tight() -> SearchResult:
    return search(PROFILE, TIGHT, OPTIONS)


@pytest.fixture(scope="module")
def full(tight: SearchResult) -> tuple[str, ...]:
    return reasons(tight, PROFILE, TIGHT, OPTIONS)


def starting(paragraphs: tuple[str, ...], opening: str) -> str:
    found = [text for text in paragraphs if text.startswith(opening)]
    assert len(found) == 1, opening
    return found[0]


def test_the_verdict_comes_first_with_its_figures(tight: SearchResult, full: tuple[str, ...]):
    for text in (tight.explanation[0], full[0]):
        assert text.startswith(f"Verdict. {tight.best.name}: ")
        for words in ("per step (", "samples/s", "MFU", "on the fullest rank", "kJ", "USD"):
            assert words in text
        assert "proved best for time" in text


def test_short_reasons_need_no_pricing_and_full_ones_say_more(
    tight: SearchResult, full: tuple[str, ...]
):
    assert tight.explain() == "\n".join(tight.explanation)
    asked = Explainer(result=tight, profile=PROFILE, cluster=TIGHT, options=OPTIONS)
    assert replace(tight, reasons=asked).explain() == "\n".join(full)
    openings = [text.split(".")[0] for text in full]
    assert openings[:5] == ["Verdict", "Plan", "Binding constraint", "Time", "Memory"]
    assert {"Rejected", "Assumed", "Break-even"} <= set(openings)


def test_the_layout_is_put_into_words(tight: SearchResult):
    words = layout_words(tight.best)
    mesh = tight.best.plan.mesh
    assert f"= {mesh.world_size} devices" in words
    assert f"{mesh.pp} pipeline ranks" in words
    assert "global batch 16" in words


def test_full_memory_is_said_to_bind(tight: SearchResult, full: tuple[str, ...]):
    price = tight.best.price
    assert price.peak_memory_bytes.high > 0.9 * price.capacity_bytes
    assert starting(full, "Memory.").endswith("which is what binds.")
    assert "Memory is full" in starting(full, "Binding")


def test_a_slow_network_is_what_limits_plain_data_parallel():
    options = SearchOptions(global_batch=16, fix=("dp_replicate=4", "recompute=none"))
    best = search(CHATTY, NODES, options).best
    text = binding(best, Repricer(CHATTY, NODES))
    assert "The network between nodes limits this plan" in text
    assert text.index("bandwidth between nodes") < text.index("FLOP/s")


def test_a_pipeline_that_mostly_idles_is_limited_by_its_bubble():
    options = SearchOptions(global_batch=1, fix=("pp=4", "schedule=gpipe"))
    profile = chain_profile([1e12] * 4)
    best = search(profile, NODES, options).best
    assert "The pipeline bubble limits this plan" in binding(best, Repricer(profile, NODES))


def test_differences_by_part_sum_to_the_difference(tight: SearchResult):
    best, other = tight.best, tight.top[-1]
    delta = other.price.step_time_s.value - best.price.step_time_s.value
    found = sum(seconds for _, seconds in differences(best, other))
    assert found == pytest.approx(delta, abs=5e-3 * best.price.step_time_s.value)


def test_comparisons_name_parts_devices_and_overlap(tight: SearchResult):
    roomy = cluster_of(2, 2)
    options = SearchOptions(global_batch=16)
    result = search(PROFILE, roomy, options)
    single = result.baselines["single device"]
    assert isinstance(single, RankedPlan)
    text = compare(result.best, single, "time")
    assert "on 1 instead of 4 devices" in text
    assert "forward +" in text
    assert "overlap" not in text
    assert "overlap" in compare(tight.best, tight.top[1], "time")


def test_left_out_parts_are_summed():
    deltas = [("bubble_s", 3.0), ("forward_s", -2.0), ("other_s", 0.5), ("optimizer_s", 0.25)]
    text = difference_words(deltas, most=2)
    assert text == "bubble (idle in the pipeline) +3 s, forward -2 s, other parts +750 ms"


def test_every_part_of_a_breakdown_has_words():
    for key in CostBreakdown().to_dict():
        assert part_name(key)
        assert "_" not in part_name(key)


def test_every_baseline_is_answered(tight: SearchResult, full: tuple[str, ...]):
    for name, item in tight.baselines.items():
        if isinstance(item, Rejection):
            assert f"{name} {item.detail}" in starting(full, "Not possible.")
        else:
            starting(full, f"Against {name}")


def test_plans_within_each_others_noise_are_too_close_to_call(
    tight: SearchResult, full: tuple[str, ...]
):
    gap = tight.top[1].price.step_time_s.value / tight.best.price.step_time_s.value - 1
    assert gap < 0.03
    text = starting(full, "Too close to call.")
    assert tight.top[1].name in text
    assert "cancels" in text


def test_the_bench_that_would_settle_it_is_written_out(tight: SearchResult):
    named = replace(PROFILE, target="zoo:gpt?size=small")
    text = starting(reasons(tight, named, TIGHT, OPTIONS), "Too close to call.")
    assert (
        "autopar bench 'zoo:gpt?size=small' --cluster CLUSTER-FILE --global-batch 16 --plans top:"
        in text
    )


def test_rejections_are_counted_by_reason(tight: SearchResult, full: tuple[str, ...]):
    text = starting(full, "Rejected.")
    for reason, count in tight.certificate.rejected.items():
        assert f"{count:,} {reason}" in text


def test_break_even_values_name_quantities_and_winners(full: tuple[str, ...]):
    text = starting(full, "Break-even.")
    assert "memory of a device: above" in text
    assert "wins" in text


def test_devices_that_stay_idle_and_the_sharding_level_are_told():
    options = SearchOptions(global_batch=16, fix=("zero=1", "dp_shard=2", "pp=1"))
    best = search(PROFILE, cluster_of(2, 2), replace(options, fix=(*options.fix, "world=2"))).best
    words = layout_words(best, cluster_of(2, 2))
    assert "2 sharding ranks (ZeRO-1) = 2 devices" in words
    assert "The other 2 of 4 devices stay idle" in words
    assert "idle" not in layout_words(best)


def test_large_spaces_compare_known_plans_and_say_so(
    tight: SearchResult, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("autopar.search.questions.breakeven.SEARCHED_SPACE", 1)
    text = starting(reasons(tight, PROFILE, TIGHT, OPTIONS), "Break-even.")
    assert "Compared were the plans shown and the best at either end" in text
    assert "--what-if searches the space" in text


def test_what_saves_memory_is_put_into_words():
    options = SearchOptions(global_batch=16, fix=("pp=2", "recompute=full", "schedule=1f1b"))
    assert "full recompute of all blocks" in layout_words(search(PROFILE, TIGHT, options).best)


def test_a_plan_that_wishes_exclude_may_lead_and_is_compared_all_the_same():
    narrow = cluster_of(2, 2, device=gpu(memory=11.7e9))  # ZeRO-3 is faster, zero=0 is asked for
    result = search(PROFILE, narrow, OPTIONS)
    sharded = result.baselines["ZeRO-3 (FSDP)"]
    assert isinstance(sharded, RankedPlan)
    assert sharded.price.step_time_s.value < result.best.price.step_time_s.value
    text = starting(reasons(result, PROFILE, narrow, OPTIONS), "Against ZeRO-3")
    assert "-" in text
