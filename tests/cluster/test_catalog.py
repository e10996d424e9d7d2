"""The machine catalogue: every file loads, every figure has a source, figures are plausible."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import autopar.cluster.catalog as catalog_module
from autopar.cluster.catalog import load_entry, load_machine, machine_names
from autopar.core.errors import InputError

NAMES = machine_names()
FOLDER = Path(catalog_module.__file__).with_suffix("")
PRICED_OPTIONALLY = {"power_watt", "idle_watt", "usd_per_hour"}


def test_covers_the_machines_promised():
    promised = "v100-16gb v100-32gb v100-32gb-pcie dgx-1 t4 a100-40gb-sxm a100-80gb-sxm "
    promised += "a100-40gb-pcie a100-80gb-pcie a800-80gb-sxm h100-sxm h100-pcie h100-nvl h200-sxm "
    promised += "h800-sxm b200-sxm gb200 l40s rtx-4090 mi250x mi300x tpu-v4 tpu-v5p cpu-host "
    promised += "v100-16gb-pcie dgx-2 dgx-a100 dgx-h100 dgx-b200 p3 p3dn p4d p4de p5 g4dn"
    assert set(promised.split()) <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_every_figure_has_a_source(name):
    raw = tomllib.loads((FOLDER / f"{name}.toml").read_text())
    assert raw["summary"] and raw["devices_per_node_source"]
    for table in ("device", "intra", "inter"):
        part = raw[table]
        if isinstance(part, str):  # the device of another machine, checked there
            assert part in NAMES
            continue
        figures = {
            k for k, v in part.items() if k == "peak_flop_per_s" or isinstance(v, int | float)
        }
        assert figures and figures <= part["sources"].keys()
        assert all(len(text) >= 5 for text in part["sources"].values())


@pytest.mark.parametrize("name", NAMES)
def test_figures_are_in_the_range_of_real_machines(name):
    entry = load_entry(name)
    machine, device = entry.machine, entry.machine.device
    assert machine.name == name
    assert 1 <= machine.devices_per_node <= entry.max_devices_per_node
    assert device.kind in {"cuda", "rocm", "tpu", "cpu"}
    assert all(1e11 < peak < 1e16 for peak in device.peak_flop_per_s.values())
    assert 8e9 < device.memory_bytes < 4e11
    assert 1e10 < device.memory_bytes_per_s < 1e13
    assert 0 < device.launch_s < 1e-4
    assert device.power_watt is None or 50 < device.power_watt < 2000
    if device.power_watt and device.idle_watt:
        assert device.idle_watt < device.power_watt
    assert device.usd_per_hour is None or 0.1 < device.usd_per_hour < 30
    for link in (machine.intra, machine.inter):
        assert 1e9 <= link.bytes_per_s < 1e13
        assert 1e-7 < link.latency_s < 1e-3
        assert 0 < link.efficiency <= 1


@pytest.mark.parametrize("name", NAMES)
def test_peaks_are_dense_and_rise_as_precision_falls(name):
    peaks = load_machine(name).device.peak_flop_per_s
    ladder = [peaks[d] for d in ("float32", "tf32", "bfloat16", "float8") if d in peaks]
    assert ladder == sorted(ladder)
    if "bfloat16" in peaks and "float8" in peaks:  # a sparse figure would make it 4
        assert peaks["float8"] / peaks["bfloat16"] == pytest.approx(2, rel=0.05)


def test_generations_are_in_order():
    half = [
        load_machine(n).device.peak_flop_per_s["float16"]
        for n in ("t4", "v100-32gb", "a100-80gb-sxm", "h100-sxm", "b200-sxm", "gb200")
    ]
    assert half == sorted(half)
    assert half[2] == 312e12
    assert half[3] == pytest.approx(989.4e12)
    memory = [
        load_machine(n).device.memory_bytes_per_s for n in ("t4", "v100-32gb", "a100-40gb-sxm")
    ]
    memory += [load_machine(n).device.memory_bytes_per_s for n in ("a100-80gb-sxm", "h100-sxm")]
    assert memory == sorted(memory)
    assert "bfloat16" not in load_machine("v100-32gb").device.peak_flop_per_s


def test_export_models_differ_from_their_originals_in_the_link_only():
    a100, a800 = load_machine("a100-80gb-sxm"), load_machine("a800-80gb-sxm")
    assert a800.device.peak_flop_per_s == a100.device.peak_flop_per_s
    assert a800.intra.bytes_per_s < a100.intra.bytes_per_s


def test_a_part_of_a_node_has_a_part_of_its_ports():
    whole, half = load_machine("a100-80gb-sxm"), load_entry("a100-80gb-sxm").with_devices(4)
    assert half.inter.bytes_per_s == whole.inter.bytes_per_s / 2
    assert "0.5 of" in half.inter.sources["bytes_per_s"]
    one_port = load_entry("t4")
    assert one_port.with_devices(2).inter == one_port.machine.inter


@pytest.mark.parametrize(
    ("host", "device", "devices", "gigabit_per_s"),
    [
        ("p3", "v100-16gb", 8, 25),
        ("p3dn", "v100-32gb", 8, 100),
        ("g4dn", "t4", 4, 50),
        ("p4d", "a100-40gb-sxm", 8, 400),
        ("p4de", "a100-80gb-sxm", 8, 400),
        ("p5", "h100-sxm", 8, 3200),
        ("dgx-1", "v100-32gb", 8, 400),
        ("dgx-2", "v100-32gb", 16, 800),
        ("dgx-a100", "a100-80gb-sxm", 8, 1600),
        ("dgx-h100", "h100-sxm", 8, 3200),
        ("dgx-b200", "b200-sxm", 8, 3200),
    ],
)
def test_hosts_on_sale_are_named_and_repeat_no_device(host, device, devices, gigabit_per_s):
    machine = load_machine(host)
    assert machine.name == host and machine.device == load_machine(device).device
    assert machine.devices_per_node == devices == load_entry(host).max_devices_per_node
    assert machine.inter.bytes_per_s * 8 / 1e9 == pytest.approx(gigabit_per_s)
    assert isinstance(tomllib.loads((FOLDER / f"{host}.toml").read_text())["device"], str)


def test_unknown_machine_names_the_closest():
    with pytest.raises(InputError) as caught:
        load_machine("a100-80gb")
    assert "a100-80gb-sxm" in (caught.value.hint or "")
    with pytest.raises(InputError):
        load_machine("../cluster/catalog/t4")


def test_catalogue_needs_no_torch_and_no_pydantic():
    code = (
        "import sys; from autopar.cluster.parse import parse_cluster;"
        "parse_cluster('128x8:h100-sxm');"
        "print([m for m in ('torch', 'pydantic', 'pandas') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "[]"
