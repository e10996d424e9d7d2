"""A few cells of the parity matrix, the wrong and the left-out ones too."""

from __future__ import annotations

from dataclasses import replace

import pytest

from autopar.tasks.resolve import resolve
from autopar.tasks.zoo.small import small_target
from autopar.validation.parity import CASES, COMPOSED, Cell, Model, table


@pytest.fixture(scope="module")
def gpt() -> Model:
    return Model(resolve(small_target("gpt")))


@pytest.mark.parametrize("case", [*CASES, *COMPOSED], ids=lambda case: case.name)
def test_gpt_equals_one_process(gpt: Model, case: object) -> None:
    cell = gpt.cell(case)  # type: ignore[arg-type]
    assert cell.kind == ("unsupported" if case.name == "ep2" else "exact"), cell  # type: ignore[attr-defined]


def test_a_plan_that_cannot_run_is_a_bad_cell(gpt: Model) -> None:
    odd = replace(CASES[0], changes={"precision": "float8"})
    cell = gpt.cell(odd)
    assert cell.kind == "failed"
    assert not cell.good


def test_reasons_stand_below_the_table() -> None:
    cells = {
        "dp2": Cell(kind="exact", text="0e+00"),
        "zero1": Cell(kind="unsupported", text="no"),
        "zero2": Cell(kind="differs", text="far", difference="1e-01 "),
    }
    text = table({"gpt": cells}, CASES[:3])
    assert "| gpt | 0e+00 | - (1) | **x** 1e-01 (2) |" in text
    assert "1. unsupported: no" in text
