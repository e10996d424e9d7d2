"""Steps multipliers in a search: measured ones before those of publications, and what is said."""

from __future__ import annotations

from dataclasses import replace

import pytest

from autopar.core.estimate import Estimate
from autopar.graph import Convergence, GraphProfile
from autopar.results import SearchResult
from autopar.search import SearchOptions, search
from autopar.search.space.sync_choice import least_steps, sync_choices

from .builders import chain_profile, cluster_of

PROFILE = chain_profile([1e12] * 4, parameter_bytes=[400_000_000] * 4, saved_bytes=3e8)
SLOW, FAST = cluster_of(4, 1, inter=2e9), cluster_of(4, 1, inter=1e12)
ANY = SearchOptions(
    global_batch=16,
    objective="time-to-target",
    sync="any",
    fix=("pp=1", "tp=1", "cp=1"),
    space="runnable",
)


def measured(
    values: dict[str, float], ranks: int = 4, missed: dict[str, str] | None = None
) -> GraphProfile:
    found = {
        name: Estimate(value=value, low=0.9 * value, high=1.1 * value, source="measured")
        for name, value in values.items()
    }
    known = Convergence(
        ranks=ranks,
        global_batch=16,
        target_loss=2.5,
        seeds=3,
        multipliers=found,
        missed=missed or {},
    )
    return replace(PROFILE, convergence=(known,))


def paragraph(result: SearchResult) -> str:
    (text,) = [text for text in result.explanation if text.startswith("Steps. ")]
    return text


def test_a_measured_multiplier_has_precedence_and_decides():
    """What the measurement makes cheap wins, what it makes dear does not."""
    cheap = search(measured({"local_sgd:8": 0.5}), SLOW, ANY)
    assert cheap.best.plan.sync == "local_sgd:8"
    assert cheap.best.price.steps_multiplier.source == "measured"
    assert cheap.best.price.steps_multiplier.value == 0.5
    names = sync_choices(PROFILE, ANY)
    dear = measured(dict.fromkeys((name for name in names if name != "all_reduce"), 1e3))
    assert search(dear, SLOW, replace(ANY, fix=("dp=4",))).best.plan.sync == "all_reduce"


def test_a_measurement_at_other_ranks_leaves_the_literature_in_charge():
    result = search(measured({"local_sgd:8": 1e3}, ranks=3), SLOW, replace(ANY, sync="local_sgd"))
    assert result.best.plan.sync == "local_sgd:8"
    assert result.best.price.steps_multiplier.source == "assumed"


def test_the_bound_holds_for_every_number_of_ranks():
    """A multiplier below the literature's at 2 ranks must not be bounded away at 4, or reverse."""
    at_2, at_4 = measured({"local_sgd:8": 0.5}, 2), measured({"local_sgd:8": 5.0}, 4)
    both = replace(PROFILE, convergence=(*at_2.convergence, *at_4.convergence))
    assert least_steps(both, "local_sgd:8") == 0.5
    assert least_steps(at_4, "local_sgd:8") == 1.3
    assert least_steps(both, "all_reduce") == 1.0
    names = ("all_reduce", "local_sgd:8")
    together = search(both, SLOW, replace(ANY, sync=",".join(names)))
    alone = [search(both, SLOW, replace(ANY, sync=name)).best.price for name in names]
    values = [price.step_time_s.value * price.steps_multiplier.value for price in alone]
    best = together.best.price
    assert best.step_time_s.value * best.steps_multiplier.value == pytest.approx(min(values))


def test_modes_that_were_measured_compete_and_those_that_missed_do_not():
    profile = measured(
        {"local_sgd:3": 1.1}, missed={"diloco:100": "2 of 3 runs do not reach loss 2.5"}
    )
    names = sync_choices(profile, ANY)
    assert "local_sgd:3" in names
    assert "diloco:100" not in names
    assert sync_choices(profile, replace(ANY, sync="diloco")) == ("diloco:100",)
    assert sync_choices(profile, replace(ANY, sync="exact")) == ("all_reduce",)
    warned = [text for text in search(profile, SLOW, ANY).warnings if "not among" in text]
    assert warned == ["diloco:100 is not among the plans: 2 of 3 runs do not reach loss 2.5"]


def test_why_says_multiplier_source_and_break_even():
    options = replace(ANY, sync="all_reduce,local_sgd:8", fix=("dp=4",))
    won = search(measured({"local_sgd:8": 1.2}), SLOW, options)
    text = paragraph(won)
    assert "1.2 times the steps to the same loss, 1.08 to 1.32" in text
    assert "measured: 3 seeds on 4 ranks, global batch 16, to loss 2.5" in text
    exact = search(PROFILE, SLOW, replace(options, sync="exact"))
    even = exact.best.price.step_time_s.value / won.best.price.step_time_s.value
    assert f"pays as long as it needs less than {even:.3g} times the steps." in text
    assert any("3 seeds on 4 ranks" in warning for warning in won.warnings)

    above = search(measured({"local_sgd:8": even * 1.05}), SLOW, options)
    assert above.best.plan.sync == "all_reduce"
    assert f"would pay below {even:.3g} times the steps, which its range" in paragraph(above)
    edge = search(measured({"local_sgd:8": even * 0.95}), SLOW, options)
    assert edge.best.plan.sync == "local_sgd:8"
    assert "its range reaches beyond that" in paragraph(edge)


def test_a_fast_link_has_nothing_to_gain():
    text = paragraph(search(PROFILE, FAST, replace(ANY, sync="all_reduce,ps_async")))
    assert "no faster a step" in text or "would pay below 1" in text
    assert "assumed; Chen et al. 2016" in text


@pytest.mark.parametrize("change", [{"sync": "exact"}, {"objective": "time"}])
def test_nothing_is_said_where_steps_do_not_differ(change: dict[str, str]):
    result = search(PROFILE, SLOW, replace(ANY, **change))
    assert not any(text.startswith("Steps. ") for text in result.explanation)
