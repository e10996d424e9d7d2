"""Bounds before layouts are built never exceed prices, and simulated ones nearly reach them."""

from __future__ import annotations

import numpy as np
import pytest

import autopar
from autopar.api.clusters import resolve_cluster
from autopar.cluster import Cluster
from autopar.cost import CostModel, price
from autopar.graph import GraphProfile
from autopar.search import SearchOptions
from autopar.search.bounds.quick import QuickBounds
from autopar.search.bounds.sharpen import sharpen
from autopar.search.space.build import PointGroup, build_space
from autopar.search.space.plans import build_plan
from autopar.search.space.point import Point
from autopar.search.stages.chunks import chunked_cuts, equal_blocks

from .builders import chain_profile, cluster_of, gpu

CASES = {
    "launches": ([1e8] * 8, 1e3, 4_000_000, ()),
    "messages": ([1e11] * 8, 3e7, 4_000_000, ()),
    "uneven": ([5e10, 1e11, 3e11, 1e10] * 2, 1e6, 40_000_000, ()),
    "tied": ([1e11] * 8, 1e6, 40_000_000, ((0, 7),)),
    "mixed": ([1e11] * 8, 1e6, 4_000_000, ()),
    "traced": ([], 0.0, 0, ()),
    "mixed, uneven": ([5e10, 1e11, 3e11, 1e10] * 2, 3e7, 40_000_000, ((0, 7),)),
}


def case(name: str) -> tuple[GraphProfile, Cluster, SearchOptions]:
    if name == "traced":  # autocast casts gradients of weights only where they are not shared out
        traced = autopar.profile(
            "zoo:gpt?layers=6&hidden=512&heads=4&seq=32&vocab=256", device="a100-80gb-sxm"
        )
        cluster = resolve_cluster("1x4:a100-80gb-sxm")
        return traced, cluster, SearchOptions(global_batch=8).resolved(cluster)
    flops, activations, parameters, tied = CASES[name]
    profile = chain_profile(
        flops,
        parameter_bytes=[parameters] * len(flops),
        activation_bytes=activations,
        tied=tied,
    )
    cluster = cluster_of(2, 2, inter=5e9)
    if "mixed" in name:
        slow = cluster_of(1, 2, device=gpu("slow", peak=4e13), inter=5e9).groups
        cluster = Cluster(name=name, groups=(*cluster_of(1, 2, inter=5e9).groups, *slow))
    return profile, cluster, SearchOptions(global_batch=8).resolved(cluster)


def least_step(point: Point, model: CostModel, options: SearchOptions) -> float:
    """Step seconds over the stage boundaries that are tried; equal ones with one stage a rank."""
    profile = model.profile
    every = chunked_cuts(profile, point.stages)
    if point.chunks == 1:
        every = (*every, equal_blocks(len(profile.blocks), point.stages))
    plans = (build_plan(point, cuts, model, options) for cuts in every)
    return min(price(p, profile, model.cluster, model).step_time_s.value for p in plans)


def deep(groups: tuple[PointGroup, ...], pp: int) -> list[PointGroup]:
    return [group for group in groups if group.pp == pp]


@pytest.mark.parametrize("name", CASES)
def test_bounds_do_not_exceed_prices(name: str):
    profile, cluster, options = case(name)
    model = CostModel(profile, cluster, options.precision)
    space = build_space(profile, cluster, options)
    quick = QuickBounds(model, options)
    closeness = []
    for pp in (1, 2, 4):
        groups = deep(space.groups, pp)[::3]
        before = [bounds for bounds, _ in quick.variants(groups)]
        after = sharpen(quick, groups, before, np.inf)
        for group, low, high in zip(groups, before, after, strict=True):
            for index in np.flatnonzero(group.variants.valid)[::5]:
                variant = group.variants.table.variants[index]
                if variant.offload == "on" or variant.recompute == "mixed":
                    continue
                value = least_step(group.point(variant), model, options)
                assert low[index] <= high[index] <= value * (1 + 1e-9), (group, variant)
                if variant.chunks > 1:
                    closeness.append(high[index] / value)
    assert np.median(closeness) > 0.99
    assert min(closeness) > 0.8, sorted(closeness)[:5]
