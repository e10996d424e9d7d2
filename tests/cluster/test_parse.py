"""Cluster expressions and files."""

import json
import os

import networkx as nx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autopar.cluster import Cluster
from autopar.cluster.catalog import load_machine, machine_names
from autopar.cluster.parse import is_local, parse_cluster
from autopar.core.errors import AutoparError, InputError


def test_nodes_and_devices_override_the_catalogue():
    cluster = parse_cluster(" 4x2:a100-80gb-sxm ")
    assert cluster.device_count == 8
    assert [cluster.node(i) for i in range(8)] == [0, 0, 1, 1, 2, 2, 3, 3]
    assert cluster.name == "4x2:a100-80gb-sxm"
    assert cluster.backend == "nccl"
    assert not cluster.measured


def test_mixed_cluster_is_one_connected_graph():
    cluster = parse_cluster("2x4:v100-32gb+2x4:t4+1x2:cpu-host")
    assert cluster.device_count == 18
    assert not cluster.uniform
    assert cluster.backend == "gloo"
    assert nx.is_connected(cluster.graph)
    assert cluster.device(0).name == "v100-32gb"
    assert cluster.device(15).name == "t4"
    assert cluster.graph.edges[8, "node2"]["link"] == "pcie3"
    assert parse_cluster("2x4:v100-32gb+2x4:t4").backend == "nccl"


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("", "empty"),
        ("   ", "empty"),
        ("0x8:h100-sxm", "0 nodes"),
        ("2x0:h100-sxm", "0 devices"),
        ("4x:h100-sxm", "NODESxDEVICES:MACHINE"),
        ("x8:h100-sxm", "NODESxDEVICES:MACHINE"),
        ("-4x8:h100-sxm", "NODESxDEVICES:MACHINE"),
        ("4.5x8:h100-sxm", "NODESxDEVICES:MACHINE"),
        ("٤x8:h100-sxm", "NODESxDEVICES:MACHINE"),
        ("4x8:", "NODESxDEVICES:MACHINE"),
        ("4x8", "NODESxDEVICES:MACHINE"),
        ("h100-sxm", "NODESxDEVICES:MACHINE"),
        ("4x8:t4+", "NODESxDEVICES:MACHINE"),
        ("4x8:t4++2x2:t4", "NODESxDEVICES:MACHINE"),
        ("4x8:h100", "unknown machine 'h100'"),
        ("4x9:h100-sxm", "holds 1 to 8"),
        ("999999999x8:h100-sxm", "more than"),
        ("9" * 500 + "x8:h100-sxm", "NODESxDEVICES:MACHINE"),
        ("9" * 5000 + "x8:h100-sxm", "at most"),
        ("a\0b.json", "printable"),
        ("4x8:t4\n+2x2:t4", "printable"),
        ("local:2", "has to be measured"),
        ("local:0", "1 to"),
        ("local:-1", "1 to"),
        ("local:two", "1 to"),
        ("local:", "1 to"),
        ("no-such-file.json", "no such file"),
        ("no-such-file.toml", "no such file"),
    ],
)
def test_bad_text_gives_one_clear_line(text, part):
    with pytest.raises(InputError) as caught:
        parse_cluster(text)
    assert part in caught.value.message
    assert "\n" not in caught.value.message
    assert len(caught.value.message) < 1200
    assert caught.value.hint


def test_did_you_mean():
    with pytest.raises(InputError) as caught:
        parse_cluster("4x8:a100-80-sxm")
    assert "a100-80gb-sxm" in (caught.value.hint or "")


@given(st.text(max_size=40))
def test_any_text_is_a_cluster_or_an_input_error(text):
    try:
        if is_local(text) is None:
            assert parse_cluster(text).device_count > 0
    except AutoparError as error:
        assert error.exit_code == 2


@given(
    st.lists(
        st.tuples(st.integers(1, 5), st.integers(1, 4), st.sampled_from(machine_names())),
        min_size=1,
        max_size=4,
    )
)
def test_any_valid_expression_round_trips_through_json(terms):
    cluster = parse_cluster("+".join(f"{n}x{d}:{m}" for n, d, m in terms))
    assert cluster.device_count == sum(n * d for n, d, _ in terms)
    assert nx.is_connected(cluster.graph)
    again = Cluster.from_dict(json.loads(json.dumps(cluster.to_dict())))
    assert again == cluster
    assert again.hash == cluster.hash


def test_is_local():
    assert is_local("local:3") == 3
    assert is_local("local") == len(os.sched_getaffinity(0))
    assert is_local("4x8:t4") is None
    assert is_local("localhost.json") is None


def test_file_written_by_autopar(tmp_path):
    cluster = parse_cluster("2x4:t4")
    cluster.save(tmp_path / "c.json")
    assert parse_cluster(str(tmp_path / "c.json")) == cluster
    (tmp_path / "plain").write_text((tmp_path / "c.json").read_text())
    assert parse_cluster(str(tmp_path / "plain")) == cluster


def test_file_from_before_clocks_could_be_given(tmp_path):
    cluster = parse_cluster("2x4:t4")
    cluster.save(tmp_path / "c.json")
    body = json.loads((tmp_path / "c.json").read_text())
    for group in body["groups"]:
        del group["machine"]["device"]["clock_share"]
    (tmp_path / "c.json").write_text(json.dumps(body))
    assert parse_cluster(str(tmp_path / "c.json")) == cluster


SPEC = """
name = "lab"
[[groups]]
nodes = 2
machine = "a100-80gb-sxm"
devices_per_node = 4
[groups.device]
power_watt = 300
clock_share = 0.8
[groups.device.peak_flop_per_s]
bfloat16 = 290e12
[groups.inter]
name = "our-ethernet"
bytes_per_s = 12.5e9
efficiency = 0.3
sources = { efficiency = "iperf, 3 March" }
[[groups]]
nodes = 1
machine = "t4"
"""


def test_spec_file_overrides_and_marks_its_figures(tmp_path):
    path = tmp_path / "lab.toml"
    path.write_text(SPEC)
    cluster = parse_cluster(str(path))
    assert (cluster.name, cluster.device_count, cluster.uniform) == ("lab", 12, False)
    device = cluster.device(0)
    assert (device.power_watt, device.clock_share) == (300, 0.8)
    assert device.sources["power_watt"] == "given in lab.toml"
    assert device.peak_flop_per_s["bfloat16"] == 290e12
    assert device.peak_flop_per_s["float16"] == 312e12
    assert device.name == "a100-80gb-sxm@lab"
    inter = cluster.machine(0).inter
    assert (inter.name, inter.bytes_per_s, inter.efficiency) == ("our-ethernet", 12.5e9, 0.3)
    assert inter.sources["efficiency"] == "iperf, 3 March"
    assert inter.sources["bytes_per_s"] == "given in lab.toml"
    assert cluster.device(8) == load_machine("t4").device


def test_spec_may_be_json(tmp_path):
    path = tmp_path / "c.json"
    path.write_text(
        json.dumps(
            {"schema": "autopar.cluster_spec", "groups": [{"nodes": 3, "machine": "mi300x"}]}
        )
    )
    assert parse_cluster(str(path)).device_count == 24


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("", "groups"),
        ("groups = []", "groups"),
        ("[[groups]]\nnodes = 0\nmachine = 't4'", "groups.0.nodes"),
        ("[[groups]]\nnodes = '2'\nmachine = 't4'", "groups.0.nodes"),
        ("[[groups]]\nnodes = 2\nmachine = 't5'", "unknown machine 't5'"),
        ("[[groups]]\nnodes = 2\nmachine = 't4'\ncolour = 'red'", "groups.0.colour"),
        ("[[groups]]\nnodes = 2\nmachine = 't4'\n[groups.device]\npower_watt = nan", "power_watt"),
        (
            "[[groups]]\nnodes = 2\nmachine = 't4'\n[groups.device]\nclock_share = 1.2",
            "clock_share",
        ),
        ("[[groups]]\nnodes = 2\nmachine = 't4'\n[groups.inter]\nbytes_per_s = -1", "bytes_per_s"),
        ("[[groups]]\nnodes = 2\nmachine = 't4'\n[groups.intra]\nefficiency = 2", "efficiency"),
        ("[[groups]]\nnodes = 2\nmachine = 't4'\ndevices_per_node = 99", "holds 1 to"),
        ("[[groups]\nnodes", "not valid TOML"),
        ("schema = 'autopar.plan'", "'autopar.cluster' is needed"),
        ("schema_version = 9\n[[groups]]\nnodes = 1\nmachine = 't4'", "schema_version"),
    ],
)
def test_bad_spec_names_the_field(tmp_path, text, part):
    path = tmp_path / "c.toml"
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        parse_cluster(str(path))
    assert part in caught.value.message
    assert "\n" not in caught.value.message


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d.pop("groups"),
        lambda d: d.update(groups=[]),
        lambda d: d["groups"][0].update(nodes="two"),
        lambda d: d["groups"][0]["machine"].update(devices_per_node=0),
        lambda d: d["groups"][0]["machine"]["device"].update(memory_bytes=-5),
        lambda d: d["groups"][0]["machine"]["device"].update(clock_share=1.5),
        lambda d: d["groups"][0]["machine"]["inter"].update(bytes_per_s=0),
        lambda d: d["groups"][0]["machine"]["inter"].update(bytes_per_s="fast"),
        lambda d: d["groups"][0]["machine"]["intra"].update(latency_s=-1),
        lambda d: d["groups"][0]["machine"]["intra"].pop("efficiency"),
        lambda d: d.update(curves=[{"collective": "all_reduce"}]),
        lambda d: d.update(schema="autopar.profile"),
        lambda d: d.update(schema_version=99),
    ],
)
def test_damaged_cluster_file_is_an_input_error(tmp_path, change):
    path = tmp_path / "c.json"
    parse_cluster("2x4:t4").save(path)
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))
    with pytest.raises(InputError):
        parse_cluster(str(path))


def test_truncated_and_empty_files(tmp_path):
    path = tmp_path / "c.json"
    parse_cluster("2x4:t4").save(path)
    path.write_text(path.read_text()[:200])
    with pytest.raises(InputError, match="not valid JSON"):
        parse_cluster(str(path))
    with pytest.raises(InputError, match="directory"):
        (tmp_path / "d.json").mkdir()
        parse_cluster(str(tmp_path / "d.json"))
