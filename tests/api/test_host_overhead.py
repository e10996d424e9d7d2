"""Costs per action are found from small pipelines; halves of a backward from two chains."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from autopar.api.pipeline_overhead import fit_costs
from autopar.api.split_overhead import Halves, measure_split_overhead, split_overhead
from autopar.cluster import Cluster, HostOverhead
from autopar.cluster.parse import parse_cluster

TRUE = np.array([2e-4, 5e-4, 1e-4])
MIX = np.array([[16, 16, 4], [16, 16, 30], [17, 17, 16], [32, 32, 62]], dtype=float)


def steps(costs: np.ndarray) -> np.ndarray:
    return MIX @ costs


def test_fit_finds_costs_that_explain_the_steps():
    start = TRUE * [0.7, 1.3, 2.0]
    found = fit_costs(steps, steps(TRUE), start)
    before = np.abs(np.log(steps(start) / steps(TRUE))).max()
    after = np.abs(np.log(steps(found) / steps(TRUE))).max()
    assert before > 0.1 and after < before / 4


def test_fit_stays_where_it_starts_when_that_explains_the_steps():
    assert fit_costs(steps, steps(TRUE), TRUE) == pytest.approx(TRUE, rel=1e-6)


def test_fit_leaves_a_cost_alone_that_no_step_depends_on():
    def predict(costs: np.ndarray) -> np.ndarray:
        return np.array([10 * costs[0], 20 * costs[0]])

    found = fit_costs(predict, np.array([2.0, 4.0]), np.array([0.1, 0.3]))
    assert found[1] == pytest.approx(0.3)
    assert found[0] == pytest.approx(0.2, rel=0.1)


def test_halves_are_split_into_a_fixed_part_and_one_per_weight():
    short = Halves(
        weights=4, whole_s=1.0, input_s=0.5 + 0.3 + 4 * 0.1, weight_s=0.5 + 0.2 + 4 * 0.4
    )
    long = Halves(weights=24, whole_s=6.0, input_s=3 + 0.3 + 24 * 0.1, weight_s=3 + 0.2 + 24 * 0.4)
    found = split_overhead([short, long], weight_share=0.5)
    assert (found.first.unit_s, found.first.weight_s) == pytest.approx((0.3, 0.1))
    assert (found.second.unit_s, found.second.weight_s) == pytest.approx((0.2, 0.4))


def test_second_halves_cost_something_per_weight_here():
    assert measure_split_overhead(0.5).second.weight_s > 1e-6


def test_older_files_have_neither_halves_nor_receiving():
    overhead = HostOverhead(
        forward_action_s=1e-4, backward_action_s=2e-4, step_s=1e-3, receive_s=3e-4
    )
    cluster = replace(parse_cluster("1x2:t4"), overhead=overhead)
    old = cluster.to_dict()
    assert Cluster.from_dict(old, "file").overhead == overhead
    del old["overhead"]["split"], old["overhead"]["receive_s"]
    assert Cluster.from_dict(old, "older file").overhead == replace(overhead, receive_s=None)
