"""The price of a traced graph against a published run of the same model and plan."""

from __future__ import annotations

import pytest

import autopar
from autopar.api.clusters import resolve_cluster
from autopar.search import SearchOptions, plan_for


@pytest.mark.slow
def test_gpt_175b_on_64_a100_as_megatron_ran_it():
    # Korthikanti et al. 2022 (arXiv 2205.05198), table 5: seconds per iteration.
    target = "zoo:gpt?layers=96&hidden=12288&heads=96&seq=2048&vocab=51200"
    profile = autopar.profile(target, device="a100-80gb-sxm")
    cluster = resolve_cluster("8x8:a100-80gb-sxm")
    plan = "tp=8,pp=8,schedule=interleaved,v=3,b=1"
    for recompute, measured_s in (("recompute=full", 18.13), ("sp=on,recompute=selective", 13.75)):
        found = plan_for(profile, cluster, f"{plan},{recompute}", SearchOptions(global_batch=64))
        assert found.price.step_time_s.value == pytest.approx(measured_s, rel=0.1)
        assert found.price.step_time_s.source == "calibrated"
        assert found.price.step_time_s.low < measured_s < found.price.step_time_s.high
