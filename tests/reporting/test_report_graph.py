from __future__ import annotations

import xml.etree.ElementTree as ET

import pytest
import report_samples as samples
from hypothesis import given
from hypothesis import strategies as st

from autopar.reporting.graph_svg import BOX_H, BOX_W, common_prefix, graph_svg, layout
from autopar.reporting.graph_view import (
    MAX_NODES,
    Arrow,
    GraphView,
    Node,
    collapse,
    from_plan,
    from_profile,
    graph_table,
)


def views() -> dict[str, GraphView]:
    profile, plan = samples.profile(), samples.ranked(dp=2, pp=2).plan
    large = samples.gpt_profile(layers=96, measured=False)
    deep = samples.gpt_plan(large, dp=1, pp=8)
    return {
        "profile": from_profile(profile, None, 1),
        "plan": from_profile(profile, plan, 2),
        "large": from_profile(large, None, 1),
        "large, 8 stages": from_profile(large, deep, 1),
        "stages only": from_plan(plan, samples.ranked(dp=2, pp=2).price),
    }


@pytest.mark.parametrize("name", views())
def test_boxes_do_not_overlap_and_stay_inside(name):
    view = views()[name]
    spots, width, height = layout(view)
    assert set(spots) == {node.index for node in view.nodes}
    places = [(spot.x, spot.y) for spot in spots.values()]
    for i, (x, y) in enumerate(places):
        assert 0 <= x <= width - BOX_W
        assert 0 <= y <= height - BOX_H
        for a, b in places[i + 1 :]:
            assert abs(x - a) >= BOX_W or abs(y - b) >= BOX_H


def test_large_models_collapse_to_repeats_inside_stages():
    profile = samples.gpt_profile(layers=96, measured=False)
    plan = samples.gpt_plan(profile, dp=1, pp=8)
    view = from_profile(profile, plan, 1)
    assert len(view.nodes) == 8 + 2
    assert sum(node.blocks for node in view.nodes) == len(profile.blocks)
    assert "98 blocks are drawn as 10 boxes" in view.note
    work = profile.forward_flop.at(1) + profile.backward_flop.at(1)
    assert sum(node.flop or 0.0 for node in view.nodes) == pytest.approx(work)


def test_collapse_never_crosses_a_stage_border():
    profile = samples.gpt_profile(layers=40, measured=False)
    plan = samples.gpt_plan(profile, dp=1, pp=4)
    for group in collapse(list(profile.blocks), plan):
        inside = [s for s in plan.stages if s.first_op <= group[0].first_op < s.stop_op]
        assert group[-1].stop_op <= inside[0].stop_op


def test_models_without_repeats_are_still_bounded():
    profile = samples.gpt_profile(layers=300, measured=False)
    from dataclasses import replace

    odd = replace(
        profile,
        blocks=tuple(replace(b, signature=f"s{b.index}") for b in profile.blocks),
    )
    view = from_profile(odd, samples.gpt_plan(odd, dp=1, pp=4), 1)
    assert len(view.nodes) <= MAX_NODES + 4
    assert sum(node.blocks for node in view.nodes) == len(odd.blocks)


def test_drawing_is_well_formed_and_marks_stage_borders():
    view = views()["plan"]
    tree = ET.fromstring(str(graph_svg(view, "two stages")))
    groups = tree.findall("g")
    assert sum(g.get("class") == "edge cut" for g in groups) == 1
    assert sum(g.get("class") == "node" for g in groups) == len(view.nodes)
    chips = {text.text for text in tree.iter("text") if text.get("class") == "chip"}
    assert chips == {"S0", "S1"}
    assert len(graph_table(view).rows) == len(view.nodes)


def test_tensor_read_twice_by_one_box_is_sent_once():
    profile = samples.profile()
    from dataclasses import replace

    edge = profile.block_edges[0]
    doubled = replace(profile, block_edges=(*profile.block_edges, edge))
    assert from_profile(doubled, None, 1).arrows == from_profile(profile, None, 1).arrows


@given(
    st.integers(2, 30).flatmap(
        lambda n: st.tuples(
            st.just(n),
            st.sets(
                st.tuples(st.integers(0, n - 1), st.integers(0, n - 1)).filter(
                    lambda p: p[0] < p[1]
                ),
                max_size=60,
            ),
        )
    )
)
def test_any_dag_can_be_drawn(graph):
    count, edges = graph
    view = GraphView(
        nodes=tuple(
            Node(index=i, name=f"n.{i}", stage=i % 3 - 1, blocks=1, flop=1.0, parameter_bytes=None)
            for i in range(count)
        ),
        arrows=tuple(Arrow(producer=a, consumer=b, size_bytes=8.0) for a, b in sorted(edges)),
    )
    columns = view.columns()
    assert all(columns[a] < columns[b] for a, b in edges)
    ET.fromstring(str(graph_svg(view, "any")))


def test_common_prefix_stops_at_the_last_name():
    assert common_prefix(["a.b.c", "a.b.d.e"]) == "a.b."
    assert common_prefix(["a.b", "a"]) == ""
    assert common_prefix(["x"]) == ""
