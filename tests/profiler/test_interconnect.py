"""Measuring this host for real: processes, gloo, failures, two hosts on loopback."""

import math
import os
import resource
import signal
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import networkx as nx
import psutil
import pytest

from autopar.cluster import Cluster
from autopar.core.errors import EnvironmentUnableError, InputError
from autopar.profiler import host
from autopar.profiler.interconnect.cluster import Place, measure_cluster
from autopar.profiler.interconnect.layouts import curve_keys, layouts, sizes_up_to

COLLECTIVES = {
    "all_reduce",
    "reduce_scatter",
    "all_gather",
    "all_to_all",
    "broadcast",
    "send_recv",
}


def workers() -> list[psutil.Process]:
    """Living descendants of this process that measure."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if "autopar.profiler.interconnect.worker" in " ".join(process.cmdline()):
                found.append(process)
        except psutil.Error:
            continue
    return found


@pytest.fixture(scope="module")
def measured() -> tuple[Cluster, float, list[tuple[str, float]]]:
    steps: list[tuple[str, float]] = []
    before_s = children_cpu_s()
    cluster = measure_cluster(
        2, quick=True, progress=lambda text, part: steps.append((text, part))
    )
    return cluster, children_cpu_s() - before_s, steps


def children_cpu_s() -> float:
    """Processor seconds of this process's ended children; a busy host changes them little."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def test_two_ranks_are_measured_quickly(measured):
    cluster, cpu_s, _ = measured
    assert cpu_s < 2 * 15
    assert cluster.measured
    assert cluster.name == "local:2"
    assert (cluster.device_count, cluster.backend) == (2, "gloo")
    assert nx.is_connected(cluster.graph)


def test_device_figures_are_measured(measured):
    device = measured[0].device(0)
    assert device.kind == "cpu"
    assert device.name == host.cpu_name()
    assert set(device.peak_flop_per_s) == {"float32", "bfloat16", "float16"}
    assert 1e8 < device.peak_flop_per_s["float32"] < 1e14
    assert 1e8 < device.memory_bytes_per_s < 1e13
    assert 1e-7 < device.launch_s < 1e-3
    assert device.memory_bytes == host.memory_bytes() / 2
    assert device.power_watt is None
    assert device.sources["power_watt"] == "not measured"
    assert device.usd_per_hour is None


def test_every_collective_has_a_usable_curve(measured):
    cluster = measured[0]
    assert {curve.collective for curve in cluster.curves} == COLLECTIVES
    for curve in cluster.curves:
        assert (curve.ranks, curve.concurrency, curve.nodes) == (2, 1, 1)
        assert len(curve.points) >= 3
        seconds = [t for _, t in curve.points]
        assert all(0 < t < 10 for t in seconds)
        assert seconds == sorted(seconds)
        assert curve.alpha_s >= 0
        assert 1e6 < curve.bytes_per_s < 1e12
        assert cluster.curve(curve.collective, 2) is curve
    assert cluster.curve("all_reduce", 3) is None


def test_load_and_overlap_are_measured(measured):
    cluster = measured[0]
    assert cluster.busy_slowdown[1] == 1.0
    assert 1.0 <= cluster.busy_slowdown[2] < 20
    assert 0.0 <= cluster.overlap_slowdown <= 1.0
    link = cluster.machine(0).intra
    assert 0 < link.efficiency <= 1
    assert math.isfinite(link.bytes_per_s)


def test_progress_rises(measured):
    steps = measured[2]
    parts = [part for _, part in steps]
    assert len(steps) >= 7
    assert parts == sorted(parts)
    assert 0 <= parts[0] <= parts[-1] <= 1


def test_measured_cluster_survives_a_file(measured, tmp_path):
    cluster = measured[0]
    cluster.save(tmp_path / "c.json")
    assert Cluster.load(tmp_path / "c.json") == cluster


def test_nothing_stays_behind(measured):
    assert workers() == []


def test_one_rank_has_no_peer():
    cluster = measure_cluster(1, quick=True)
    assert cluster.device_count == 1
    assert cluster.curves == ()
    assert cluster.busy_slowdown == {1: 1.0}
    assert "nothing is sent" in cluster.machine(0).intra.sources["bytes_per_s"]


@pytest.mark.slow
def test_two_hosts_meet_and_agree():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        endpoint = f"127.0.0.1:{probe.getsockname()[1]}"

    def one(node: int) -> Cluster:
        place = Place(nnodes=2, node_rank=node, rdzv_endpoint=endpoint)
        return measure_cluster(1, quick=True, place=place, timeout_s=90)

    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(one, range(2))
    assert first.device_count == 2
    assert first.curves == second.curves
    assert first.groups == second.groups
    assert {first.node(i) for i in range(2)} == {0, 1}
    curve = first.curve("all_reduce", 2)
    assert curve is not None
    assert curve.nodes == 2
    assert first.curve("all_reduce", 2, nodes=1) is None
    assert first.machine(0).inter.name == "network"
    assert workers() == []


def test_dead_rank_is_named_and_leaves_no_orphan():
    killed = threading.Event()

    def kill_one() -> None:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and not killed.is_set():
            launcher = workers()[:1]
            ranks = launcher[0].children() if launcher else []
            if len(ranks) == 2:
                time.sleep(0.3)
                os.kill(ranks[1].pid, signal.SIGKILL)
                killed.set()
            time.sleep(0.02)

    killer = threading.Thread(target=kill_one)
    killer.start()
    with pytest.raises(EnvironmentUnableError) as caught:
        measure_cluster(2)
    killer.join()
    assert killed.is_set()
    assert "rank 1 was killed by SIGKILL" in caught.value.message
    assert "\n" not in caught.value.message
    assert workers() == []


def test_hosts_that_do_not_come_are_reported_in_time():
    started = time.monotonic()
    place = Place(nnodes=2, node_rank=1, rdzv_endpoint="127.0.0.1:9")
    with pytest.raises(EnvironmentUnableError):
        measure_cluster(1, quick=True, place=place, timeout_s=4)
    assert time.monotonic() - started < 15
    assert workers() == []


@pytest.mark.parametrize("ranks", [0, -1, 100_000])
def test_impossible_ranks(ranks):
    with pytest.raises(InputError):
        measure_cluster(ranks)


def test_nccl_is_refused_not_guessed():
    with pytest.raises(EnvironmentUnableError):
        measure_cluster(2, backend="nccl")


@pytest.mark.parametrize(
    ("nnodes", "node_rank", "endpoint"),
    [(0, 0, None), (2, 2, "a:1"), (2, -1, "a:1"), (2, 0, None), (2, 0, "a"), (2, 0, "a:99999")],
)
def test_impossible_places(nnodes, node_rank, endpoint):
    with pytest.raises(InputError):
        Place(nnodes=nnodes, node_rank=node_rank, rdzv_endpoint=endpoint)


@pytest.mark.parametrize("nnodes", [1, 2, 3, 4])
@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 8])
def test_layouts_are_disjoint_and_hold_rank_zero(nnodes, ranks):
    found = layouts(nnodes, ranks)
    for layout in found:
        members = [rank for group in layout.groups for rank in group]
        assert len(members) == len(set(members))
        assert set(members) <= set(range(nnodes * ranks))
        assert layout.groups[0][0] == 0
        assert {len(group) for group in layout.groups} == {layout.size}
        assert {len({rank // ranks for rank in group}) for group in layout.groups} == {
            layout.nodes
        }
        assert ("send_recv" in curve_keys(layout)) == (layout.size == 2)
    keys = [(layout.size, layout.concurrency, layout.nodes) for layout in found]
    assert len(keys) == len(set(keys))
    if nnodes * ranks > 1:
        assert nnodes * ranks in {layout.size for layout in found}


def test_sizes_hold_powers_of_two_and_the_limit():
    assert sizes_up_to(1) == []
    assert sizes_up_to(2) == [2]
    assert sizes_up_to(6) == [2, 4, 6]
    assert sizes_up_to(8) == [2, 4, 8]
