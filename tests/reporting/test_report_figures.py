from __future__ import annotations

from dataclasses import replace

import pytest
import report_samples as samples

from autopar.cost import simulate_plan
from autopar.reporting.figures.blocks import block_rows, block_table, share_figure
from autopar.reporting.figures.breakdown import Bar, breakdown_figure, breakdown_table
from autopar.reporting.figures.curves import curves_figure, curves_table
from autopar.reporting.figures.difference import difference_figure, difference_table
from autopar.reporting.figures.gantt import (
    MAX_INTERVALS,
    binned,
    gantt_data,
    gantt_figure,
    gantt_table,
    with_idle,
)
from autopar.reporting.figures.memory import MemoryRow, memory_figure
from autopar.reporting.figures.op_types import op_types_table
from autopar.reporting.figures.pareto import Candidate, on_front
from autopar.reporting.figures.roofline import roofline_figure
from autopar.reporting.figures.search import outcomes_table
from autopar.reporting.pages.compare import bootstrap_change
from autopar.reporting.palette import EVENTS, MEMORY, PARTS
from autopar.results import CostBreakdown, Event
from autopar.results.timeline import KINDS

PLAIN_TRACES = {"bar", "scatter", "histogram", "waterfall"}


def test_every_part_and_kind_has_an_ink():
    price = samples.search_result().best.price
    assert set(PARTS) | {"total_s"} == set(price.breakdown.to_dict())
    assert set(MEMORY) | {"total_bytes"} == set(price.memory[0].to_dict())
    assert set(KINDS) <= set(EVENTS)


def test_parts_of_a_breakdown_bar_sum_to_the_step():
    bar = Bar(label="predicted", breakdown=samples.search_result().best.price.breakdown)
    figure = breakdown_figure((bar,))
    total = sum(trace.x[0] for trace in figure.data if trace.type == "bar")
    unit = 1e-3 if bar.breakdown.total_s < 1 else 1.0
    assert total * unit == pytest.approx(bar.breakdown.total_s)
    assert breakdown_table((bar,), "x").rows[-1][1] == pytest.approx(bar.breakdown.total_s)


def test_waterfall_leads_from_one_total_to_the_other():
    first = CostBreakdown(forward_s=1.0, backward_s=2.0, bubble_s=0.5)
    second = CostBreakdown(forward_s=1.2, backward_s=1.5, optimizer_s=0.1)
    table = difference_table(first, second, "d")
    assert [row[0] for row in table.rows][:2] in (
        ["backward", "idle (bubble)"],
        ["idle (bubble)", "backward"],
    )
    trace = difference_figure(table, "a", "b").data[0]
    assert trace.x[0] == pytest.approx(3.5)
    assert trace.x[0] + sum(trace.x[1:-1]) == pytest.approx(second.total_s)
    assert trace.x[-1] == pytest.approx(second.total_s)


def test_collectives_that_a_run_does_not_show_are_compared_with_the_compute_around_them():
    first = CostBreakdown(forward_s=1.0, backward_s=2.0, collective_s=4.0, bubble_s=0.5)
    second = CostBreakdown(forward_s=3.5, backward_s=4.0, bubble_s=0.4)
    rows = difference_table(first, second, "d", pooled=True).rows
    assert [row[0] for row in rows] == ["compute, collectives inside", "idle (bubble)"]
    assert rows[0][1:] == pytest.approx((7.0, 7.5, 0.5))
    alone = difference_table(first, second, "d").rows
    assert "collectives between ops" in [row[0] for row in alone]


def test_idle_fills_every_gap_to_the_end_of_the_step():
    events = [
        Event(rank=0, kind="forward", start_s=1.0, end_s=2.0),
        Event(rank=0, kind="backward", start_s=3.0, end_s=4.0),
    ]
    lane = with_idle(events, 5.0)
    assert [(e.kind, e.start_s, e.end_s) for e in lane] == [
        ("idle", 0.0, 1.0), ("forward", 1.0, 2.0), ("idle", 2.0, 3.0),
        ("backward", 3.0, 4.0), ("idle", 4.0, 5.0),
    ]  # fmt: skip


def test_gantt_puts_the_prediction_of_replica_0_over_every_replica():
    item = samples.ranked(dp=2, pp=2)
    predicted = simulate_plan(item.plan, item.price)
    measured = samples.measured_timeline(item.plan, predicted)
    gantt = gantt_data(predicted, measured, {0: 0, 1: 0, 2: 2, 3: 2})
    assert [(lane.rank, lane.source) for lane in gantt.lanes] == [
        (rank, source) for rank in range(4) for source in ("predicted", "measured")
    ]
    for lane in gantt.lanes:
        filled = sum(e.end_s - e.start_s for e in lane.events)
        end = predicted.duration_s if lane.source == "predicted" else measured.duration_s
        assert filled == pytest.approx(end, rel=1e-6)
    table = gantt_table(gantt)
    assert len(table.rows) == 8
    figure = gantt_figure(gantt)
    drawn = sum(len(trace.x) for trace in figure.data)
    assert drawn == sum(len(lane.events) for lane in gantt.lanes)


def test_long_timelines_are_binned_and_say_so():
    gantt = gantt_data(None, samples.long_timeline(ranks=8, events=6000), {})
    assert sum(len(lane.events) for lane in gantt.lanes) <= MAX_INTERVALS
    assert "48,000 events are drawn as" in gantt.note
    for lane in gantt.lanes:
        assert sum(e.end_s - e.start_s for e in lane.events) == pytest.approx(6.0, rel=1e-3)


def test_binning_keeps_the_kind_that_fills_most_of_a_slot():
    events = (
        Event(rank=0, kind="forward", start_s=0.0, end_s=0.7),
        Event(rank=0, kind="backward", start_s=0.7, end_s=2.0),
    )
    assert [(e.kind, e.end_s) for e in binned(events, 2.0, 2)] == [
        ("forward", 1.0),
        ("backward", 2.0),
    ]


def test_many_ranks_are_cut_and_said():
    gantt = gantt_data(None, samples.long_timeline(ranks=50, events=4), {})
    assert len(gantt.lanes) == 32
    assert "32 of 50 ranks" in gantt.note


def test_when_not_all_ranks_fit_every_pipeline_rank_of_replica_0_is_drawn():
    peers = {rank: rank - rank % 5 for rank in range(50)}
    gantt = gantt_data(None, samples.long_timeline(ranks=50, events=4), peers)
    assert set(range(0, 50, 5)) <= {lane.rank for lane in gantt.lanes}


def test_capacity_is_drawn_only_where_it_can_be_seen():
    memory = samples.search_result().best.price.memory[0]
    row = (MemoryRow(label="every rank", predicted=memory),)
    near = memory_figure(row, memory.total_bytes * 1.5)
    far = memory_figure(row, memory.total_bytes * 100)
    assert len(near.layout.shapes) == 1
    assert len(far.layout.shapes) == 0
    assert near.layout.xaxis.range[1] > far.layout.xaxis.range[1]


def test_pareto_front_is_what_nobody_beats_in_both():
    found = tuple(
        Candidate(role="runner-up", label=i.name, price=i.price)
        for i in samples.search_result().top
    )
    front = on_front(found)
    for c in found:
        beaten = any(
            o.price.step_time_s.value <= c.price.step_time_s.value
            and o.price.peak_memory_bytes.value < c.price.peak_memory_bytes.value
            for o in found
        )
        if c in front:
            assert not beaten
    assert front[0].price.step_time_s.value == min(c.price.step_time_s.value for c in found)


def test_outcomes_account_for_every_point():
    certificate = samples.search_result().certificate
    table = outcomes_table(certificate)
    assert sum(int(row[1] or 0) for row in table.rows) == certificate.space


def test_blocks_of_one_stage_share_a_row_and_lose_nothing():
    profile, plan = samples.measured_profile(), samples.ranked(dp=2, pp=2).plan
    rows = block_rows(profile, plan, 4)
    assert sum(row.repeats for row in rows) == len(profile.blocks)
    total = profile.forward_flop.at(4) + profile.backward_flop.at(4)
    assert sum(row.flop for row in rows) == pytest.approx(total)
    assert {row.stage for row in rows} == {0, 1}
    assert len(block_table(rows, 4).rows) == len(rows)
    work = sum(sum(trace.x) for trace in share_figure(rows).data)
    assert work > 0


def test_roofline_draws_the_roof_only_with_a_peak():
    rows = tuple(
        r for r in block_rows(samples.measured_profile(), None, 4) if r.rate and r.intensity
    )
    assert len(roofline_figure(rows, None, None).data) == 1
    roof = roofline_figure(rows, 1e12, 1e11).data[1]
    assert max(roof.y) == pytest.approx(1e3)
    assert 10.0 in [pytest.approx(x) for x in roof.x]


def test_curves_hold_every_measured_point():
    profile = samples.measured_profile()
    table = curves_table(profile)
    assert len(table.rows) == profile.unique_blocks * 4
    assert len(curves_figure(table).data) == profile.unique_blocks


def test_operators_sum_to_the_graph():
    profile = samples.measured_profile()
    table = op_types_table(profile, 8)
    assert sum(float(row[2] or 0) for row in table.rows) == pytest.approx(
        profile.forward_flop.at(8)
    )
    assert sum(int(row[1] or 0) for row in table.rows) == len(profile.ops)


def test_bootstrap_tells_noise_from_change():
    base = tuple(1.0 + 0.02 * ((7 * i) % 11 - 5) / 5 for i in range(40))
    same = bootstrap_change(tuple(reversed(base)), base)
    slower = bootstrap_change(tuple(1.1 * t for t in base), base)
    assert same.in_noise
    assert not slower.in_noise
    assert slower.low < 0.1 < slower.high
    assert bootstrap_change(base, base) == bootstrap_change(base, base)


def test_a_bench_whose_choice_failed_has_no_regret():
    bench = samples.bench_result()
    assert bench.regret is not None
    failing = [replace(row, measured_s=None) if row == bench.chosen else row for row in bench.rows]
    assert replace(bench, rows=tuple(failing)).regret is None


def test_only_csp_safe_traces_are_used(all_pages):
    from autopar.reporting.model import Chart

    kinds = {
        trace.type
        for page in all_pages.values()
        for section in page.sections
        for part in section.parts
        if isinstance(part, Chart) and part.figure is not None
        for trace in part.figure.data
    }
    assert kinds <= PLAIN_TRACES
