"""The step-time formula, its fit and its scores on 130 published rows.

The rows are figures from repositories under MIT and Apache-2.0 licences (vTrain, InternEvo,
llm-foundry, NeMo, calculon), see the source column.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from autopar.calibration import Constants
from autopar.validation.rows.completion import complete
from autopar.validation.rows.rows import Row
from autopar.validation.rows.table import read_entries
from autopar.validation.step_time.columns import columns
from autopar.validation.step_time.fit import fit, log_times
from autopar.validation.step_time.formula import step_seconds
from autopar.validation.step_time.held_out import held_out as predict_held_out
from autopar.validation.step_time.predictor import Predictor
from autopar.validation.step_time.score import choice_scores, family_scores

FILE = Path(__file__).with_name("time_rows.csv")


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    found, unpriced = complete(read_entries(FILE))
    assert not unpriced
    return [row for row in found if row.measured_s]


@pytest.fixture(scope="module")
def held_out(rows):
    return predict_held_out(rows, rows)[0]


def seconds(row: Row) -> float:
    return float(step_seconds(Constants.defaults(), columns([row])).total_s[0])


def of(rows: list[Row], **wanted: object) -> Row:
    return next(r for r in rows if all(getattr(r, k) == v for k, v in wanted.items()))


def test_held_out_groups_beat_the_trivial_rule(rows, held_out):
    choices = choice_scores(rows, held_out.value_s)
    assert len(choices) >= 5
    regret = np.mean([c.regret for c in choices])
    rule = np.mean([c.rule_regret for c in choices])
    assert regret < 0.5 * rule
    assert regret <= 0.03
    assert np.mean([c.in_top3 for c in choices]) >= 0.8  # one of six sets misses on so few rows


def test_held_out_errors_and_coverage(rows, held_out):
    scores = {score.family: score for score in family_scores(rows, held_out)}
    assert scores["vts"].median <= 0.06
    assert scores["all"].median <= 0.08
    assert scores["all"].covered >= 0.85


def test_defaults_alone_stay_within_a_third(rows):
    found = Predictor(()).predict(rows)
    measured = np.array([row.measured_s for row in rows])
    assert np.mean(np.abs(found.value_s / measured - 1)) < 0.33
    assert np.all(found.low_s < found.value_s)
    assert np.all(found.value_s < found.high_s)


def test_a_fit_finds_planted_constants(rows):
    planted = Constants.defaults()
    x = columns(rows)
    logs = np.log(np.tile([getattr(planted, n) for n in planted._values], (len(rows), 1)))
    logs[:, 0] += np.log(0.8)  # every product at 80 % of its usual rate
    times = np.exp(log_times(logs, x))
    fake = [replace(row, measured_s=float(t)) for row, t in zip(rows, times, strict=True)]
    error = log_times(fit(fake).logs(fake), x) - np.log(times)
    assert np.median(np.abs(error)) < 0.01


def test_an_outlier_hardly_moves_the_others(rows):
    some = [row for row in rows if row.family == "vts"][:40]
    bent = [replace(some[0], measured_s=3 * some[0].measured_s), *some[1:]]
    before, after = (Predictor(r, corrected=False).predict(some[1:]) for r in (some, bent))
    assert np.max(np.abs(after.value_s / before.value_s - 1)) < 0.05


def test_more_microbatches_shrink_the_bubble(rows):
    row = replace(of(rows, pp=4), vpp=1)
    per_sample = [seconds(replace(row, microbatches=float(m))) / m for m in (4, 8, 32)]
    assert per_sample[0] > per_sample[1] > per_sample[2]


def test_full_recompute_costs_about_a_third(rows):
    row = of(rows, family="llmf")
    none, full = (seconds(replace(row, recompute=r)) for r in ("none", "full"))
    assert 1.15 < full / none < 1.45


def test_a_slower_network_slows_data_parallelism_not_one_node(rows):
    many = of(rows, family="vtm", dp=64)
    one = of(rows, family="vts")
    slow = {r.id: replace(r, inter_bytes_per_s=r.inter_bytes_per_s / 20) for r in (many, one)}
    assert seconds(slow[many.id]) > 1.05 * seconds(many)
    assert seconds(slow[one.id]) == seconds(one)


def test_hybrid_sharding_gathers_inside_the_node(rows):
    row = of(rows, family="llmf")
    wide = replace(row, devices=64, dp=64, zero=3, zero_ranks=64, inter_bytes_per_s=5e9)
    assert seconds(replace(wide, zero_ranks=8)) < seconds(wide)


def moe(row: Row, **changes: object) -> Row:
    """A row whose blocks are mixtures of 64 experts, 8 of them active."""
    shape = replace(row.shape, experts=64, active_experts=8, expert_ffn=row.shape.hidden // 2)
    return replace(row, shape=shape, devices=64, dp=64, tp=1, pp=1, zero=1, **changes)


def test_experts_across_nodes_share_their_network(rows):
    row = of(rows, family="nemo")
    inside, across = moe(row, ep=8), moe(row, ep=64)
    slow = {r.ep: replace(r, inter_bytes_per_s=r.inter_bytes_per_s / 8) for r in (inside, across)}
    lost = {r.ep: seconds(slow[r.ep]) - seconds(r) for r in (inside, across)}
    assert lost[64] > 3 * lost[8]


def test_state_space_layers_take_time(rows):
    row = of(rows, family="nemo")
    hybrid = replace(row, shape=replace(row.shape, scan_width=2 * row.shape.hidden))
    assert 1.02 < seconds(hybrid) / seconds(row) < 1.5


def test_wider_gradients_take_longer_and_overlap_hides_them(rows):
    row = of(rows, family="vtm", dp=64)
    wide = replace(row, gradient_bytes=4.0)
    assert seconds(wide) > seconds(row)
    assert seconds(replace(wide, overlaps_sync=True)) < seconds(wide)


def test_parameters_gathered_once_a_step_cost_less(rows):
    row = replace(of(rows, family="llmf"), devices=64, dp=8, pp=8, microbatches=32.0, zero=3)
    row = replace(row, zero_ranks=8, stage_layers=(4.0, 4.0, 4.0))
    assert seconds(replace(row, gathers_once=True)) < seconds(row)


def test_faster_devices_shorten_filling_a_mixed_pipeline(rows):
    row = of(rows, pp=4)
    mixed = replace(row, platform=replace(row.platform, mean_time=0.5))
    few, many = (replace(r, microbatches=4.0) for r in (row, mixed))
    assert seconds(many) < seconds(few)


def test_an_attention_without_hoppers_instructions_is_slower(rows):
    row = of(rows, family="nemo", fused_attention=True)
    assert not row.older_attention
    assert seconds(replace(row, older_attention=True)) > seconds(row)


def test_the_head_stays_in_sixteen_bit(rows):
    row = of(rows, family="nemo", precision="float8")
    big = replace(row, shape=replace(row.shape, vocab=4 * row.shape.vocab))
    half = step_seconds(Constants.defaults(), columns([replace(big, precision="float16")]))
    eighth = step_seconds(Constants.defaults(), columns([big]))
    assert eighth.head_s[0] == pytest.approx(half.head_s[0])
    assert eighth.block_s[0] < half.block_s[0]


def test_eight_bits_gain_less_where_operands_are_large_beside_their_products(rows):
    row = of(rows, family="nemo", precision="float8")
    narrow = replace(row.shape, hidden=1024, ffn=4096, heads=8, kv_heads=8, head_dim=128)

    def gain(shape):
        some = [replace(row, shape=shape, precision=p) for p in ("float16", "float8")]
        half, eighth = step_seconds(Constants.defaults(), columns(some)).block_s
        return half / eighth

    wide = replace(narrow, hidden=8192, ffn=32768, heads=64, kv_heads=64)
    assert gain(narrow) < 0.9 * gain(wide)


def test_scales_by_row_and_autocast_take_time(rows):
    row = of(rows, family="nemo", precision="float8")
    assert seconds(replace(row, row_scaled=True)) > 1.05 * seconds(row)
    half = replace(row, precision="float16")
    assert seconds(replace(half, autocast=True)) > 1.01 * seconds(half)


def test_a_column_is_the_attribute_of_its_name(rows):
    row = of(rows, family="nemo", precision="float8")
    x = columns([row, replace(row, precision="float16", recompute="full")])
    assert x.layers.tolist() == [row.shape.layers] * 2
    assert x.devices_per_node.tolist() == [row.devices_per_node] * 2
    assert x.multiprocessors.tolist() == [row.platform.multiprocessors] * 2
    assert (x.float8.tolist(), x.full.tolist()) == ([1, 0], [0, 1])
    assert x.take(np.array([1])).full.tolist() == [1]


def test_tensor_collectives_beside_their_products_cost_less(rows):
    row = next(r for r in rows if r.tp > 1)
    assert seconds(replace(row, overlaps_tensor=True)) < seconds(
        replace(row, overlaps_tensor=False)
    )


def test_attention_without_a_fused_softmax_is_slower(rows):
    row = replace(of(rows, family="vtm"), fused_attention=False)
    assert seconds(replace(row, fused_softmax=False)) > seconds(replace(row, fused_softmax=True))


def test_a_network_that_is_assumed_widens_the_range_of_software_never_measured(rows):
    row = replace(of(rows, zero=3), framework="new", devices=64, dp=64, zero_ranks=64)
    predictor = Predictor(rows)
    sure, unsure = (
        predictor.predict([replace(row, inter_bytes_per_s=1e9, network_assumed=assumed)])
        for assumed in (False, True)
    )
    assert unsure.value_s[0] == sure.value_s[0]
    assert unsure.high_s[0] > 1.5 * sure.high_s[0]
