from __future__ import annotations

from dataclasses import replace

import pytest
import report_samples as samples

from autopar.core.errors import InputError
from autopar.reporting import evaluate_gate


def run(seconds: float, **changes: object):
    record = samples.run_record()
    return replace(record, step_times_s=(seconds,) * 3, **changes)


@pytest.mark.parametrize(
    ("expression", "holds"),
    [
        ("step_time>400ms", True),
        ("step_time>0.4", True),
        ("step_time<400ms", False),
        ("step_time >= 0.5 s", True),
        ("step_time>+5%", True),
        ("step_time>+30%", False),
        ("step_time>+50ms", True),
        ("step_time>+0.2", False),
        ("step_time<-5%", False),
        ("peak_memory>1KiB", True),
        ("peak_memory>900GiB", False),
        ("verify!=passed", False),
        ("verify==passed", True),
        ("loss>2.5", True),
        ("loss>1e9", False),
        ("loss>1e9 or step_time>400ms", True),
        ("loss>1e9 or step_time>4s", False),
        ("step_time_rel>15%", True),
    ],
)
def test_conditions(expression, holds):
    found, sentence = evaluate_gate(expression, run(0.5), run(0.4))
    assert found is holds
    assert sentence


def test_the_sentence_carries_the_numbers():
    holds, sentence = evaluate_gate("step_time>+5%", run(0.5), run(0.4))
    assert holds
    assert "500 ms" in sentence
    assert "420 ms" in sentence
    assert "400 ms +5%" in sentence


def test_relative_error_counts_both_directions():
    predicted = samples.run_record().plan.predicted["step_time_s"]["value"]
    for measured in (predicted * 0.8, predicted * 1.3):
        assert evaluate_gate("step_time_rel>0.15", run(measured))[0]
    assert not evaluate_gate("step_time_rel>0.15", run(predicted * 1.05))[0]


def test_a_run_without_verification_does_not_count_as_passed():
    assert evaluate_gate("verify!=passed", run(0.5, verify=None))[0]
    assert evaluate_gate("verify!=passed", samples.run_record(verify=False))[0]


def test_other_documents_have_figures_too():
    assert evaluate_gate("gap>0", samples.search_result())[0] is False
    assert evaluate_gate("regret>1000", samples.bench_result())[0] is False
    assert evaluate_gate("parameters>1", samples.measured_profile())[0] is True
    assert evaluate_gate("step_time>0", samples.run_record().plan)[0] is True


@pytest.mark.parametrize(
    ("expression", "words"),
    [
        ("", "empty"),
        ("step_time", "cannot read the condition"),
        ("step_time>", "cannot read the condition"),
        ("step_time=>5", "cannot read the condition"),
        ("__import__('os')>1", "cannot read the condition"),
        ("step_tme>5", "unknown figure 'step_tme'"),
        ("step_time>5GiB", "'GiB' is not a unit"),
        ("peak_memory>5ms", "not a size"),
        ("step_time>passed", "compares with numbers only"),
        ("verify>5", "compares with words only"),
        ("verify>passed", "compares with words only"),
        ("step_time>1e", "'e' is not a unit"),
        ("loss>$(reboot)", "cannot read the limit"),
        ("step_time>+5%", "compares with a second document"),
    ],
)
def test_junk_is_refused_with_one_line(expression, words):
    with pytest.raises(InputError, match=words.replace("(", r"\(")) as caught:
        evaluate_gate(expression, run(0.5))
    assert "\n" not in caught.value.message


def test_a_missing_figure_is_not_zero():
    with pytest.raises(InputError, match="not available"):
        evaluate_gate("grad_rel>1", run(0.5, verify=None))


def test_a_word_in_the_baseline_is_refused():
    with pytest.raises(InputError, match="words only"):
        evaluate_gate("verify>+5%", run(0.5), run(0.4))
