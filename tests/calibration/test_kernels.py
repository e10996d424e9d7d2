"""Primitives against figures worked out by hand."""

import numpy as np
import pytest

from autopar.calibration import Constants
from autopar.calibration.constants import SPECS
from autopar.calibration.kernels import (
    HOP_S,
    NODE_HOP_S,
    ROW_CAST_BYTES,
    cast_seconds,
    exposed_sync_seconds,
    flash_seconds,
    gather_ring_seconds,
    gemm_seconds,
    layer_collective_seconds,
    phase_seconds,
    unfused_attention_seconds,
)
from autopar.calibration.table import clock_share


def constants(**changed: float) -> Constants:
    """Constants that do nothing, but for the given ones."""
    neutral = dict.fromkeys((spec.name for spec in SPECS), 1.0)
    zero = ("tile_elements", "contraction_start", "wave_share", "collective_latency_s")
    return Constants({**neutral, **dict.fromkeys(zero, 0.0), "phase_norm": 3.0, **changed})


def gemm(c: Constants, m: float, n: float, k: float, *, bandwidth: float = 1e30) -> float:
    return float(
        gemm_seconds(
            c,
            np.array(m),
            np.array(n),
            np.array(k),
            item_bytes=2,
            peak_flop_per_s=1e12,
            memory_bytes_per_s=bandwidth,
            multiprocessors=100,
        )
    )


def test_a_large_product_takes_its_flops_over_the_rate_it_reaches():
    assert gemm(constants(gemm_efficiency=0.5), 1024, 1024, 1024) == pytest.approx(
        2 * 1024**3 / 0.5e12
    )


def test_a_product_of_one_row_takes_the_time_of_its_bytes():
    time = gemm(constants(), 1, 4096, 4096, bandwidth=1e9)
    assert time == pytest.approx(2 * (4096 + 4096**2 + 4096) / 1e9, rel=1e-3)


def test_idle_tiles_and_start_up_slow_small_products_more_than_large_ones():
    c = constants(tile_elements=8192.0, contraction_start=64.0)
    small = gemm(c, 256, 256, 256) / gemm(constants(), 256, 256, 256)
    large = gemm(c, 8192, 8192, 8192) / gemm(constants(), 8192, 8192, 8192)
    assert small == pytest.approx((256**2 + 8192 * 100) / 256**2 * (256 + 64) / 256)
    assert 1 < large < 1.03


def test_whole_waves_make_steps():
    c = constants(wave_share=1.0)
    full = gemm(c, 256, 128 * 100, 4096)
    assert full == pytest.approx(2 * 100 * 256 * 128 * 4096 / 1e12)
    assert gemm(c, 256, 128 * 90, 4096) == pytest.approx(full)
    assert gemm(c, 256, 128 * 101, 4096) > 1.3 * full


def test_sides_off_64_cost_the_penalty():
    c = constants(misaligned=1.5)
    assert gemm(c, 512, 1000, 512) / gemm(c, 512, 1024, 512) == pytest.approx(1.5 * 1000 / 1024)


def test_fused_attention_skips_half_of_the_scores():
    c = constants(flash_efficiency=0.5)
    assert float(flash_seconds(c, np.array(1e12), 1e12)) == pytest.approx(1.0)


def test_unfused_attention_pays_for_scores_and_odd_heads():
    def seconds(c: Constants, head_dim: float, falls_back: bool) -> float:
        return float(
            unfused_attention_seconds(
                c,
                np.array(1e12),
                np.array(1e9),
                head_dim=np.array(head_dim),
                contraction=np.array(head_dim),
                falls_back=np.array(falls_back),
                item_bytes=2,
                peak_flop_per_s=1e12,
                memory_bytes_per_s=1e12,
            )
        )

    c = constants(score_bytes=10.0, score_fallback=2.0, head_misaligned=4.0)
    assert seconds(c, 64, False) == pytest.approx(1.01)
    assert seconds(c, 64, True) == pytest.approx(1.02)
    assert seconds(c, 108, False) == pytest.approx(4.01)


def test_a_ring_moves_twice_its_share_and_one_rank_moves_nothing():
    c = constants(collective_latency_s=1e-3)
    size, rate = np.array(8e9), np.array(1e9)
    assert float(layer_collective_seconds(c, size, np.array(4.0), rate)) == pytest.approx(
        2e-3 + 2 * 3 / 4 * 8
    )
    assert float(layer_collective_seconds(c, size, np.array(1.0), rate)) == 0


def test_a_gather_passes_every_rank_and_every_node_once():
    c = constants(collective_latency_s=1e-3)

    def seconds(size: float, ranks: float, nodes: float) -> float:
        found = gather_ring_seconds(
            c, np.array(size), np.array(ranks), np.array(1e9), nodes=np.array(nodes)
        )
        return float(found)

    assert seconds(8e9, 4, 1) == pytest.approx(1e-3 + 6 + 3 * HOP_S)
    assert seconds(0, 64, 8) == pytest.approx(1e-3 + 56 * HOP_S + 7 * NODE_HOP_S)


def test_scaling_an_operand_moves_its_bytes_and_more_by_rows():
    c = constants(cast_bytes=5.0)
    assert float(cast_seconds(c, np.array(1e9), 1e12)) == pytest.approx(5e-3)
    by_rows = float(cast_seconds(c, np.array(1e9), 1e12, row_scaled=1.0))
    assert by_rows == pytest.approx(5e-3 + ROW_CAST_BYTES * 1e-3)


@pytest.mark.parametrize(
    ("exposed", "expected"), [(1.0, 10.0), (0.5, 5.0 + 0.5 * 7.0), (2.0, 20.0), (0.0, 7.0)]
)
def test_gradient_exchange_hides_under_the_backward_pass_only(exposed: float, expected: float):
    found = exposed_sync_seconds(exposed, np.array(10.0), np.array(3.0))
    assert float(found) == pytest.approx(expected)


def test_a_phase_is_its_longer_part_rounded_off():
    c = constants()
    assert phase_seconds(c, 1.0, 0.01) == pytest.approx(1.0, rel=1e-5)
    assert phase_seconds(c, 1.0, 1.0) == pytest.approx(2 ** (1 / 3))


def test_a_board_with_less_power_than_its_peak_needs_runs_slower():
    assert clock_share("a100", 3.12e14, 400) == pytest.approx(1.0, abs=0.01)
    assert clock_share("t4", 6.5e13, 70) == 0.44  # as measured, below the rule's 0.67
    assert clock_share("h100", 9.894e14, 350) == pytest.approx(0.71, abs=0.01)
    assert clock_share("h100", 9.894e14, 500) == pytest.approx(0.84, abs=0.01)
    assert clock_share("tpu", 2.75e14, 192) == 1.0
    assert clock_share("t4", 6.5e13, None) == 1.0
