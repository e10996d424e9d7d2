"""Step times of published runs through traced graphs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

import autopar
from autopar.api.clusters import resolve_cluster
from autopar.validation.rows.completion import complete
from autopar.validation.rows.graph_plan import cluster_text, target_of
from autopar.validation.rows.rows import Row
from autopar.validation.rows.table import read_entries
from autopar.validation.step_time.graph_time import graph_time, time_table, timed_rows

CSV = Path(__file__).parents[2] / "docs" / "unseen_measurements.csv"


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    return complete(read_entries(CSV))[0]


def test_some_runs_of_each_model_whose_attention_is_fused_are_priced(rows: list[Row]) -> None:
    found = timed_rows(rows, 2)
    assert found
    models = [(row.family, target_of(row)) for row in found]
    assert max(models.count(model) for model in models) == 2
    assert all(row.fused_attention and row.measured_s for row in found)
    assert timed_rows([replace(found[0], fused_attention=False)], 2) == []
    assert timed_rows([replace(found[0], seq=65536)], 2) == []


def test_a_small_gpt_of_fused_attention_takes_what_was_published(rows: list[Row]) -> None:
    row = next(row for row in rows if row.id == "fat-0001")  # GPT-2 small on 8 A100
    cluster = resolve_cluster(cluster_text(row))
    found = graph_time(row, autopar.profile(target_of(row), device="a100-80gb-sxm"), cluster)
    assert abs(found.error) < 0.2
    assert found.low_s < row.measured_s < found.high_s
    table = time_table([found])
    assert f"| fat | 1 | {found.error:+.1%} |" in table
    assert f"| {row.id} |" in table
