"""The alpha-beta fit and the monotone curve."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autopar.cluster import CollectiveCurve
from autopar.cluster.fit import fit_alpha_beta, non_decreasing

SIZES = [1024.0 * 4**i for i in range(9)]
times = st.floats(1e-6, 10.0)
points = st.lists(times, min_size=1, max_size=9).map(lambda t: list(zip(SIZES, t, strict=False)))


@given(st.floats(1e-6, 1e-3), st.floats(1e6, 1e11))
def test_exact_line_is_found(alpha, rate):
    found_alpha, found_rate = fit_alpha_beta([(x, alpha + x / rate) for x in SIZES])
    for x in SIZES:
        assert found_alpha + x / found_rate == pytest.approx(alpha + x / rate, rel=1e-3)


def test_one_disturbed_point_does_not_bend_the_line():
    line = [(x, 50e-6 + x / 1e9) for x in SIZES]
    line[4] = (line[4][0], 10 * line[4][1])
    alpha, rate = fit_alpha_beta(line)
    assert alpha == pytest.approx(50e-6, rel=0.02)
    assert rate == pytest.approx(1e9, rel=0.02)


@given(points)
def test_fit_is_usable_whatever_was_measured(measured):
    alpha, rate = fit_alpha_beta(measured)
    assert alpha >= 0
    assert rate > 0


def test_flat_points_do_not_give_an_absurd_rate():
    alpha, rate = fit_alpha_beta([(1024.0, 2e-3), (4096.0, 2e-3), (16384.0, 2e-3)])
    assert alpha == pytest.approx(2e-3)
    assert rate == pytest.approx(100 * 16384 / 2e-3)


@given(points)
def test_curve_never_falls_and_keeps_sizes(measured):
    level = non_decreasing(measured)
    assert [size for size, _ in level] == [size for size, _ in measured]
    seconds = [t for _, t in level]
    assert all(b >= a * (1 - 1e-9) for a, b in pairwise(seconds))
    low, high = min(t for _, t in measured), max(t for _, t in measured)
    assert all(low * (1 - 1e-9) <= t <= high * (1 + 1e-9) for t in seconds)


def test_ordered_points_stay_as_measured():
    measured = [(1.0, 1e-3), (2.0, 2e-3), (4.0, 2e-3)]
    assert [size for size, _ in non_decreasing(measured)] == [1, 2, 4]
    assert [t for _, t in non_decreasing(measured)] == pytest.approx([1e-3, 2e-3, 2e-3])
    falling = non_decreasing([(1.0, 4e-3), (2.0, 1e-3)])
    assert [t for _, t in falling] == pytest.approx([2e-3, 2e-3])


def test_curve_interpolates_between_its_points():
    curve = CollectiveCurve(
        collective="all_reduce",
        ranks=2,
        points=((1e3, 1e-4), (1e6, 1e-3)),
        alpha_s=1e-4,
        bytes_per_s=1e9,
    )
    assert curve.seconds(0) == 0
    assert curve.seconds(10) == 1e-4
    assert 1e-4 < curve.seconds(1e4) < 1e-3
    assert curve.seconds(2e6) == pytest.approx(2e-3)
