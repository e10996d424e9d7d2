"""Calibration files: factors multiply, unknown devices say so, bad files are refused in a line."""

import json

import pytest

from autopar.calibration import Calibration, Constants
from autopar.calibration.constants import SPECS
from autopar.calibration.table import architecture, device_class
from autopar.cluster.catalog import load_machine, machine_names
from autopar.core.errors import InputError

FACTORS = {
    "gemm_efficiency": {
        "global": 0.9,
        "architecture:ampere": 1.1,
        "device:a100": 1.2,
        "framework:megatron": 0.5,
    },
    "overall": {"pair:megatron@a100": 1.3},
}


def test_factors_of_what_a_device_belongs_to_multiply():
    table = Calibration(factors=FACTORS)
    default = Constants.defaults()
    plain = table.constants("a100")
    assert plain.gemm_efficiency == pytest.approx(default.gemm_efficiency * 0.9 * 1.1 * 1.2)
    with_framework = table.constants("a100", "megatron")
    assert with_framework.gemm_efficiency == pytest.approx(plain.gemm_efficiency * 0.5)
    assert with_framework.overall == pytest.approx(1.3)
    assert plain.overall == 1.0


def test_a_device_without_rows_says_whose_constants_it_gets():
    found = Calibration(factors=FACTORS).constants("a800")
    assert found.gemm_efficiency == pytest.approx(Constants.defaults().gemm_efficiency * 0.9 * 1.1)
    assert "a800" in found.notes[0]
    assert Calibration(factors=FACTORS).constants("a100").notes == ()


def test_files_come_back_as_they_were(tmp_path):
    path = tmp_path / "calibration.json"
    table = Calibration(factors=FACTORS, fitted_on={"rows": 3})
    table.save(path)
    assert Calibration.load(path) == table


@pytest.mark.parametrize("factor", [0, -1, "x", None])
def test_bad_factors_are_refused(tmp_path, factor):
    path = tmp_path / "calibration.json"
    Calibration(factors=FACTORS).save(path)
    data = json.loads(path.read_text())
    data["factors"]["overall"]["global"] = factor
    path.write_text(json.dumps(data))
    with pytest.raises(InputError):
        Calibration.load(path)


def test_the_shipped_calibration_knows_its_rows_and_stays_in_reason():
    shipped = Calibration.shipped()
    assert shipped.fitted_on["rows"] > 1000
    names = {spec.name for spec in SPECS}
    assert set(shipped.factors) <= names
    found = shipped.constants("a100")
    assert 0.3 < found.gemm_efficiency < 1.0
    assert 0.3 < found.memory_efficiency < 1.0
    assert 1e-6 < found.launch_s < 1e-4


def test_every_cuda_device_of_the_catalogue_has_an_architecture():
    devices = [load_machine(name).device for name in machine_names()]
    unknown = {
        device.name
        for device in devices
        if device.kind == "cuda" and architecture(device_class(device.name)) == device.name
    }
    assert not unknown
