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
