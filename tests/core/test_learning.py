from __future__ import annotations

import pytest

from autopar.core.learning import smoothed, steps_to


def test_smoothed_losses_are_means_in_a_row():
    assert smoothed([1.0, 2.0, 3.0, 6.0], 3) == pytest.approx([2.0, 11 / 3])
    assert smoothed([1.0, 2.0], 3) == []


def test_a_line_is_reached_where_it_is_without_smoothing():
    """A trailing mean lags by half its window; the count must not."""
    line = [10.0 - step for step in range(1, 30)]
    assert steps_to(line, 4.0, 1) == 6.0
    assert steps_to(line, 4.0, 5) == 6.0
    assert steps_to(line, 4.0, 9) == 6.0


def test_one_lucky_loss_does_not_count():
    losses = [5.0] * 10 + [0.0] + [5.0] * 10 + [1.0] * 20
    assert steps_to(losses, 2.0, 1) == 11.0
    assert steps_to(losses, 2.0, 8) > 21.0


def test_a_loss_that_is_never_reached():
    assert steps_to([3.0] * 50, 2.9, 5) is None
    assert steps_to([], 2.9, 5) is None
