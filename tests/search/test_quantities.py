"""Changes of a cluster: rates and factors read, applied to the right figure, refused in words."""

from __future__ import annotations

from dataclasses import replace

import pytest

from autopar.cluster import Cluster, CollectiveCurve
from autopar.core.errors import InputError
from autopar.search.explain.change import changed_cluster, scaled_cluster
from autopar.search.explain.quantities import QUANTITIES, parse_rate, show_rate

from .builders import cluster_of

CLUSTER = cluster_of(2, 4)


def measured() -> Cluster:
    points = ((1e3, 1e-3), (1e6, 3e-3))
    curves = tuple(
        CollectiveCurve(
            collective="all_reduce",
            ranks=2,
            points=points,
            alpha_s=1e-3,
            bytes_per_s=1e9,
            nodes=nodes,
        )
        for nodes in (1, 2)
    )
    return replace(CLUSTER, curves=curves, measured=True)


@pytest.mark.parametrize(
    ("text", "bytes_per_s"),
    [
        ("25GB/s", 25e9),
        ("25 GiB/s", 25 * 1024**3),
        ("200Gbit/s", 25e9),
        ("200Gbps", 25e9),
        ("200Gb/s", 25e9),
        ("1000000", 1e6),
    ],
)
def test_rates_are_read_in_bits_and_bytes(text: str, bytes_per_s: float):
    assert parse_rate(text) == pytest.approx(bytes_per_s)


def test_rates_are_shown_as_networks_are_sold():
    assert show_rate(25e9) == "200 Gbit/s"
    assert show_rate(1.25e8) == "1 Gbit/s"


@pytest.mark.parametrize("name", sorted(QUANTITIES))
def test_a_factor_moves_the_quantity_and_nothing_else(name: str):
    doubled = scaled_cluster(CLUSTER, name, 2.0)
    for other, quantity in QUANTITIES.items():
        ratio = quantity.read(doubled) / quantity.read(CLUSTER)
        assert ratio == pytest.approx(2.0 if other == name else 1.0), other


@pytest.mark.parametrize("name", sorted(set(QUANTITIES) - {"peak"}))
def test_an_absolute_value_is_reached(name: str):
    quantity = QUANTITIES[name]
    assert quantity.example is not None
    changed = changed_cluster(CLUSTER, f"{name}={quantity.example}")
    assert quantity.read(changed) == pytest.approx(quantity.parse(quantity.example))


def test_several_changes_and_percentages_apply_in_turn():
    changed = changed_cluster(CLUSTER, "memory=+50%, inter_node_bandwidth=-20%,memory=x2")
    assert QUANTITIES["memory"].read(changed) == pytest.approx(80e9 * 3)
    assert QUANTITIES["inter_node_bandwidth"].read(changed) == pytest.approx(25e9 * 0.8)


def test_measured_curves_follow_their_tier():
    half = changed_cluster(measured(), "inter_node_bandwidth=x0.5")
    inside, across = half.curves
    assert inside.points == measured().curves[0].points
    assert across.seconds(1e6) == pytest.approx(1e-3 + 2e-3 / 0.5)
    late = changed_cluster(measured(), "latency=x3")
    assert [curve.seconds(1e6) for curve in late.curves] == pytest.approx([5e-3, 5e-3])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("bandwidth=x2", "cannot change 'bandwidth'"),
        ("peak=300TFLOP/s", "not a factor"),
        ("inter_node_bandwidth=fast", "not a rate"),
        ("latency=5", "not a time"),
        ("memory=x0", "not positive"),
        ("memory=-100%", "not positive"),
        ("devices=3.7", "whole nodes"),
        ("", "empty"),
    ],
)
def test_a_change_that_cannot_be_read_says_how_to_write_it(text: str, words: str):
    cluster = cluster_of(2, 3) if "devices" in text else CLUSTER
    with pytest.raises(InputError, match=words) as caught:
        changed_cluster(cluster, text)
    assert caught.value.hint


def test_figures_that_do_not_exist_cannot_change():
    bare = cluster_of(1, 2)
    device = replace(bare.groups[0].machine.device, usd_per_hour=None)
    machine = replace(bare.groups[0].machine, device=device)
    poor = replace(bare, groups=(replace(bare.groups[0], machine=machine),))
    with pytest.raises(InputError, match="usd_per_hour"):
        changed_cluster(poor, "price=x2")
    with pytest.raises(InputError, match="measured"):
        changed_cluster(measured(), "peak=x2")
