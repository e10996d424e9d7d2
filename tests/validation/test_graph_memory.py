"""Peaks of published runs through traced graphs, with what their frameworks hold."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

import autopar
from autopar.api.clusters import resolve_cluster
from autopar.calibration.memory import MemoryConstants
from autopar.validation.memory.graph_memory import (
    graph_peak,
    graph_rows,
)
from autopar.validation.memory.peak import predict
from autopar.validation.rows.completion import complete
from autopar.validation.rows.graph_plan import even_cuts, spec_of, target_of, why_not
from autopar.validation.rows.rows import Row
from autopar.validation.rows.table import read_entries


@pytest.fixture(scope="module")
def rows() -> dict[str, Row]:
    found, _ = complete(read_entries(Path(__file__).with_name("memory_rows.csv")))
    return {row.id: row for row in found}


def test_a_row_names_its_model_and_its_point(rows: dict[str, Row]) -> None:
    row = rows["bloom-0022"]
    assert target_of(row).startswith("zoo:gpt?layers=78&hidden=14400&heads=64&ffn=57600&vocab=")
    assert spec_of(row) == ("dp_shard=8,zero=1,tp=8,cp=1,pp=6,b=4,recompute=full,schedule=1f1b")
    llama = rows["tt-0004"]
    assert target_of(llama).startswith("zoo:llama?layers=32&")
    assert "kv_heads=8" in target_of(llama)


def test_rows_that_no_zoo_model_is_say_why(rows: dict[str, Row]) -> None:
    row = rows["bloom-0001"]
    assert why_not(row) is None
    assert why_not(replace(row, shape=replace(row.shape, experts=8))) == "not a dense transformer"
    assert why_not(replace(row, recompute="none", fused_attention=False))
    assert why_not(replace(row, micro_batch=1.5))
    assert row in graph_rows(list(rows.values()))
    assert rows["sailor-0003"] not in graph_rows(list(rows.values()))


def test_the_graph_of_a_published_run_needs_what_was_measured(rows: dict[str, Row]) -> None:
    row = rows["bloom-0001"]  # 8 blocks of 14400 on one node
    profile = autopar.profile(target_of(row), device="a100-80gb-sxm")
    found = graph_peak(row, profile, resolve_cluster("1x8:a100-80gb-sxm"))
    assert row.measured_memory_bytes is not None
    assert found.value == pytest.approx(row.measured_memory_bytes, rel=0.1)
    closed = float(predict(MemoryConstants.shipped(), [row])[0])
    assert found.value == pytest.approx(closed, rel=0.05)
    # autopar keeps float32 gradients, DeepSpeed's fp16 runs do not.
    assert found.own > found.value


def test_stages_have_as_many_layers_as_frameworks_give_them() -> None:
    assert even_cuts(34, 32, 4) == (0, 9, 17, 25, 34)  # embedding first, norm and head last
    assert even_cuts(8, 8, 3) == (0, 3, 5, 8)
    assert even_cuts(5, 4, 1) == (0, 5)
