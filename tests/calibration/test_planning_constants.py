"""Constants of plans that autopar runs itself."""

import pytest

from autopar.calibration import Calibration
from autopar.calibration.kernels import OLDER_ATTENTION


@pytest.mark.parametrize(("device", "slower"), [("h100", OLDER_ATTENTION), ("a100", 1.0)])
def test_attention_is_that_of_torch(device: str, slower: float) -> None:
    shipped = Calibration.shipped()
    common, own = shipped.constants(device), shipped.planning(device)
    assert own.flash_efficiency == pytest.approx(common.flash_efficiency / slower)
    assert own.notes == common.notes


def test_gathers_hide_as_in_torch_and_all_else_is_common() -> None:
    shipped = Calibration.shipped()
    common, own = shipped.constants("a100"), shipped.planning("a100")
    assert own.gather_exposed == shipped.constants("a100", "fsdp1").gather_exposed
    assert own.gather_exposed < common.gather_exposed
    assert own.gemm_efficiency == common.gemm_efficiency
    assert own.gemm_efficiency < 1
