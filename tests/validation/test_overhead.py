"""Our steps beside hand-written torch: same losses, and not much slower even on a busy machine."""

from __future__ import annotations

from dataclasses import replace

import pytest

from autopar.validation.overhead.duels import BY_HAND, SIZES, TIMELINE, Duel
from autopar.validation.overhead.measure import fight
from autopar.validation.overhead.report import page
from autopar.validation.overhead.row import Row

pytest.importorskip("transformers")

SIZE = replace(SIZES[0], steps=5)
LIMIT = 1.5
"""Machines that run tests do other things too; `scripts/overhead` has the real bounds."""


@pytest.mark.slow
@pytest.mark.parametrize("duel", BY_HAND, ids=lambda duel: duel.name)
def test_same_losses_in_about_the_time(duel: Duel) -> None:
    row = fight(duel, SIZE, pairs=3)
    assert len(row.ratios) == 3
    assert row.loss_difference < 1e-6
    assert row.ratio < LIMIT, row


@pytest.mark.slow
def test_a_timeline_costs_little() -> None:
    row = fight(TIMELINE[0], SIZE, pairs=3)
    assert row.loss_difference == 0.0
    assert row.ratio < LIMIT, row


def test_a_slow_side_is_told() -> None:
    times = {"ours_s": (0.03, 0.02, 0.04), "theirs_s": (0.02, 0.02, 0.02)}
    work = {"ours_cpu_s": (0.01, 0.01, 0.01), "theirs_cpu_s": (0.02, 0.02, 0.02)}
    work |= {"ours_fastest_s": (0.03, 0.01, 0.01), "theirs_fastest_s": (0.02, 0.02, 0.02)}
    row = Row(duel="DDP", size="tiny", loss_difference=0.0, bound=1.02, **times, **work)
    assert row.ratio == pytest.approx(1.5)
    assert not row.good
    assert row.quantile(0.0) == pytest.approx(1.0)
    text = page({"by hand": [row], "timeline": []})
    assert (
        "| tiny | DDP | 30.00 | 20.00 | **1.500 ± 0.282** | 1.000-2.000 | 0.500 | 0.500 | 0e+00 |"
        in text
    )
    assert "each of at least 3 such rounds" in text
