"""Blocks priced by the calibrated primitives."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from autopar.calibration import Constants
from autopar.calibration.constants import SPECS
from autopar.cluster.catalog import load_machine
from autopar.cost.computation.roofline import Roofline
from autopar.graph import Amount
from autopar.strategies import BlockWork
from autopar.strategies.matmul import Matmul

NOTHING = Amount(fixed=0.0, per_sample=0.0)
BLOCK = BlockWork(
    matmuls=(),
    attention=(),
    forward_bytes=NOTHING,
    backward_bytes=NOTHING,
    autocast_forward_bytes=Amount(fixed=0.0, per_sample=3e9),
    autocast_backward_bytes=Amount(fixed=0.0, per_sample=5e9),
    autocast_kernels=2,
    cast_elements=0.0,
    forward_flop_share=1.0,
    kernels=1,
    parameter_bytes=0.0,
    expert_parameter_bytes=0.0,
    saved_bytes=NOTHING,
    selective_saved_bytes=NOTHING,
    boundary_bytes=NOTHING,
    peak_transient_bytes=NOTHING,
    logit_bytes=NOTHING,
    collectives=(),
)


def device_seconds(precision: str, cast_bytes: float) -> tuple[float, float]:
    """Forward and backward of one product of 4,096 rows a sample by 1,024 x 2,048."""
    values = {spec.name: spec.default for spec in SPECS}
    product = Matmul(
        m=Amount(fixed=0.0, per_sample=4096.0),
        n=2048.0,
        k=1024.0,
        batch=Amount(fixed=1.0, per_sample=0.0),
        weight=True,
    )
    work = SimpleNamespace(
        unique=(replace(BLOCK, matmuls=(product,)),), split=SimpleNamespace(tp=1)
    )
    device = load_machine("h100-sxm").device
    prices = Roofline(device, precision, Constants({**values, "cast_bytes": cast_bytes}), 1.0)
    (phases,) = prices.many_phases([work], 2.0)
    return float(phases.forward_device[0]), float(phases.backward_device[0])


def test_eight_bit_products_pay_for_casting_input_and_gradient():
    reached = load_machine("h100-sxm").device.memory_bytes_per_s
    reached *= Constants.defaults().memory_efficiency
    free, paid = device_seconds("float8", 1e-9), device_seconds("float8", 5.0)
    rows = 2 * 4096
    assert paid[0] - free[0] == pytest.approx(5 * rows * 1024 / reached, rel=1e-6)
    assert paid[1] - free[1] == pytest.approx(5 * rows * 2048 / reached, rel=1e-6)


def test_sixteen_bit_products_are_not_cast():
    assert device_seconds("bfloat16", 5.0) == device_seconds("bfloat16", 1e-9)


def prices(precision: str, scale: float):
    device = load_machine("a100-80gb-sxm").device
    block = replace(BLOCK, forward_bytes=Amount(per_sample=4e9), backward_bytes=Amount(8e9))
    work = SimpleNamespace(unique=(block,), split=SimpleNamespace(tp=1))
    (phases,) = Roofline(device, precision, Constants.defaults(), scale).many_phases([work], 1.0)
    rate = device.memory_bytes_per_s * Constants.defaults().memory_efficiency
    return phases, rate


def test_float32_model_in_16_bit_moves_what_autocast_does():
    phases, rate = prices("bfloat16", 0.5)
    assert phases.forward_device[0] == pytest.approx(3e9 / rate)
    assert phases.backward_device[0] == pytest.approx(5e9 / rate)
    alone, _ = prices("float32", 1.0)
    assert alone.forward_device[0] == pytest.approx(4e9 / rate)
    assert phases.forward_host[0] == pytest.approx(2 * alone.forward_host[0])


def test_model_of_16_bit_weights_is_not_cast():
    phases, rate = prices("bfloat16", 1.0)
    assert phases.forward_device[0] == pytest.approx(4e9 / rate)
