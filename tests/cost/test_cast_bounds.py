"""Casts of gradients are part of prices, and not of bounds that hold for sharded plans too."""

from __future__ import annotations

import numpy as np

import autopar
from autopar.api.clusters import resolve_cluster
from autopar.cost import CostModel
from autopar.cost.computation.blocks import Surroundings
from autopar.search import SearchOptions, plan_for
from autopar.strategies import Split

TARGET = "zoo:gpt?layers=2&hidden=256&heads=4&seq=32&vocab=512"


def test_only_ranks_with_float32_weights_cast_gradients() -> None:
    profile = autopar.profile(TARGET, device="a100-80gb-sxm")
    cluster = resolve_cluster("1x2:a100-80gb-sxm")
    model, device = CostModel(profile, cluster, "bfloat16"), cluster.device(0)
    plain = Surroundings(tp=(), cp=(), ep=())
    held = Surroundings(tp=(), cp=(), ep=(), casts=True)
    bound, priced = (model.block_seconds(Split(), 1, device, 2, a) for a in (plain, held))
    assert np.all(bound.backward <= priced.backward)
    extra = model.compute.cast_seconds(model.work(Split()), device)
    assert extra.sum() > 0
    np.testing.assert_allclose(priced.backward - bound.backward, extra)
    np.testing.assert_array_equal(priced.forward, bound.forward)
    np.testing.assert_array_equal(priced.backward_collective, 0.0)  # not even rounding
    # what bounds of a group start from must not exceed what its sharded variants compute
    options = SearchOptions(global_batch=2)
    sharded = plan_for(profile, cluster, "dp_shard=2,zero=1,b=1", options).price
    assert bound.backward.sum() <= sharded.stage_costs[0].backward_s * (1 + 1e-9)
