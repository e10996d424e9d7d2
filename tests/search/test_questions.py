"""Why not that plan, and what if the cluster were another: verdicts, bytes, seconds, odds."""

from __future__ import annotations

import re

import pytest

from autopar.core.errors import InfeasibleError, InputError
from autopar.results import RankedPlan, SearchResult
from autopar.search import (
    SearchOptions,
    search,
    what_if,
    what_if_answer,
    why_not,
    why_not_answer,
)

from .builders import cluster_of, gpu, tied_skips

PROFILE, TIGHT = tied_skips()
PLAIN = ("zero=0", "offload=off")
OPTIONS = SearchOptions(global_batch=16, fix=PLAIN)
FREE = SearchOptions(global_batch=16)


@pytest.fixture(scope="module")
def tight() -> SearchResult:
    return search(PROFILE, TIGHT, OPTIONS)


@pytest.mark.parametrize(
    ("spec", "verdict"),
    [
        ("pp=3", "not in the space"),
        ("zero=3", "not in the space"),
        ("pp=1,schedule=gpipe", "not in the space"),
        ("dp=4,pp=1", "infeasible"),
        ("pp=4", "dominated"),
    ],
)
def test_why_not_opens_with_its_verdict(tight: SearchResult, spec: str, verdict: str):
    answer = why_not_answer(spec, tight, PROFILE, TIGHT, OPTIONS)
    assert answer.verdict == verdict
    text = why_not(spec, tight, PROFILE, TIGHT, OPTIONS)
    assert text.split("? ", 1)[1].startswith(verdict.capitalize())
    assert answer.text in text


def test_what_does_not_fit_is_told_by_part_and_fits_with_what_is_said(tight: SearchResult):
    answer = why_not_answer("dp=4,pp=1", tight, PROFILE, TIGHT, OPTIONS)
    for words in ("optimizer state", "parameters", "gradients", "11.59 GiB"):
        assert words in answer.text
    enough = re.search(r"would fit with ([0-9.]+) GiB", answer.text)
    assert enough is not None
    asked = SearchOptions(global_batch=16, fix=(*PLAIN, "dp=4", "pp=1"))
    roomy = cluster_of(2, 2, device=gpu(memory=float(enough[1]) * 1024**3))
    assert search(PROFILE, roomy, asked).best.plan.mesh.dp_replicate == 4


def test_a_slower_plan_is_told_in_seconds_that_add_up(tight: SearchResult):
    answer = why_not_answer("pp=4", tight, PROFILE, TIGHT, OPTIONS)
    assert isinstance(answer.plan, RankedPlan)
    assert tight.best.name in answer.text
    assert answer.plan.name in answer.text
    delta = answer.plan.price.step_time_s.value - tight.best.price.step_time_s.value
    parts = re.findall(r" ([+-])([0-9.]+) (s|ms)\b", answer.text)
    total = sum(
        float(n) * (1 if unit == "s" else 1e-3) * (1 if sign == "+" else -1)
        for sign, n, unit in parts
    )
    assert total == pytest.approx(delta, rel=0.02)


def test_the_space_says_what_it_has(tight: SearchResult):
    assert "pp takes 1, 2, 4" in why_not("pp=3", tight, PROFILE, TIGHT, OPTIONS)
    assert "--fix asks for zero=0" in why_not("zero=3", tight, PROFILE, TIGHT, OPTIONS)
    barred = SearchOptions(global_batch=16, forbid=("pp=4",))
    result = search(PROFILE, TIGHT, barred)
    assert "--forbid" in why_not("pp=4", result, PROFILE, TIGHT, barred)
    with pytest.raises(InputError, match="unknown axis"):
        why_not("pq=3", tight, PROFILE, TIGHT, OPTIONS)


def test_the_plan_itself_is_chosen(tight: SearchResult):
    best = tight.best.plan
    spec = f"pp={best.mesh.pp},dp={best.mesh.dp_replicate},schedule={best.schedule}"
    assert why_not_answer(spec, tight, PROFILE, TIGHT, OPTIONS).verdict == "chosen"


@pytest.mark.parametrize("axis", ["zero=3", "offload=on", "recompute=full", "schedule=gpipe"])
def test_any_axis_can_be_asked_for(axis: str):
    result = search(PROFILE, TIGHT, FREE)
    answer = why_not_answer(axis, result, PROFILE, TIGHT, FREE)
    assert answer.verdict == "dominated"
    assert answer.plan is not None
    assert answer.plan.price.step_time_s.value > result.best.price.step_time_s.value


@pytest.mark.parametrize(
    ("change", "verdict"),
    [
        ("memory=x8", "flips"),
        ("memory=80GB", "flips"),
        ("memory=x0.1", "infeasible"),
        ("peak=x1.001", "same"),
        ("devices=2", "flips"),
        ("devices=x2", "flips"),
    ],
)
def test_what_if(tight: SearchResult, change: str, verdict: str):
    assert what_if_answer(change, tight, PROFILE, TIGHT, OPTIONS).verdict == verdict


def test_a_flip_is_told_with_the_old_plan_priced_anew_and_its_break_even(tight: SearchResult):
    answer = what_if_answer("memory=x8", tight, PROFILE, TIGHT, OPTIONS)
    assert answer.text.startswith("The choice flips")
    assert "The plan of now takes as long as now" in answer.text
    assert "Against the new choice" in answer.text
    assert answer.break_even is not None
    assert 1 < answer.break_even.scale < 8
    assert answer.break_even.text in answer.text


def test_slower_hardware_says_which_part_grows(tight: SearchResult):
    text = what_if("inter_node_bandwidth=x0.02", tight, PROFILE, TIGHT, OPTIONS)
    assert "The plan of now would take" in text
    assert re.search(r"(pipeline messages|gradient synchronisation) \+", text)


def test_a_plan_that_no_longer_fits_says_so(tight: SearchResult):
    text = what_if("memory=x0.8", tight, PROFILE, TIGHT, OPTIONS)
    assert "not possible then" in text
    assert "GiB" in text


def test_prices_change_the_bill_only(tight: SearchResult):
    answer = what_if_answer("price=x0.5", tight, PROFILE, TIGHT, OPTIONS)
    assert answer.verdict == "same"
    cost = tight.best.price.cost_usd
    assert cost is not None
    assert f"{cost.value / 2:.4g} USD a step instead of {cost.value:.4g}" in answer.text


def test_when_nothing_fits_the_largest_parts_are_named():
    with pytest.raises(InfeasibleError, match=r"and optimizer state \(3\.73 GiB\)"):
        search(PROFILE, TIGHT, SearchOptions(global_batch=16, fix=(*PLAIN, "dp=4", "pp=1")))


def test_wishes_outside_the_space_are_told_what_there_is():
    with pytest.raises(InfeasibleError, match="pp=3 is not in the space, pp takes 1, 2, 4") as e:
        search(PROFILE, TIGHT, SearchOptions(global_batch=16, fix=("pp=3",)))
    nearest, farther, dropped = (e.value.hint or "").split("; or ")
    assert (nearest, farther, dropped) == ("use --fix pp=4", "use --fix pp=2", "drop --fix pp=3")


def test_a_fixed_sync_mode_that_does_not_compete_is_to_be_allowed():
    asked = SearchOptions(global_batch=16, fix=("sync=local_sgd",))
    with pytest.raises(InfeasibleError, match="sync=local_sgd:8 is not in the space") as caught:
        search(PROFILE, TIGHT, asked)
    assert (caught.value.hint or "").startswith("add --sync local_sgd:8;")
    allowed = SearchOptions(global_batch=16, fix=("sync=local_sgd",), sync="local_sgd:8")
    assert search(PROFILE, TIGHT, allowed).best.plan.sync == "local_sgd:8"


def test_reasons_of_points_that_were_not_asked_for_are_left_out(tight: SearchResult):
    """Points with too many stages or mixed recompute say nothing about nine chunks."""
    assert search(PROFILE, TIGHT, FREE).certificate.rejected
    answer = why_not_answer("chunks=9", tight, PROFILE, TIGHT, OPTIONS)
    assert answer.text == "chunks=9 is not in the space, chunks takes 1, 2."
