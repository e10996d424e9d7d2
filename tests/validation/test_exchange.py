"""Gradient exchange of data parallel benchmarks: rows read, formula by hand, planted constants."""

from dataclasses import replace

import numpy as np
import pytest

from autopar.core.errors import InputError
from autopar.validation.published.exchange import (
    ExchangeModel,
    ExchangeRow,
    exchange_row,
    fit_exchange,
    hold_out,
    load,
    save,
)
from autopar.validation.rows.table import Entry

MODES = (
    "all-reduce, no overlap",
    "all-reduce, overlapped, merged gradients",
    "parameter server (BytePS), no overlap",
    "parameter server, priority schedule + partition",
)


def row(mode: str = MODES[0], devices: int = 16, gbps: int = 10, **cells: str) -> ExchangeRow:
    texts = {
        "id": f"x-{mode}-{devices}-{gbps}",
        "model": "BERT-Large",
        "params_b": "0.25",
        "gpu": "not stated",
        "gpus": str(devices),
        "gpus_per_node": "4",
        "micro_batch": "8",
        "notes": f"[A] sync mode: {mode}; network {gbps}GbE with TCP/IP; std 1",
        **cells,
    }
    found = exchange_row(Entry(cells=texts, line=1))
    assert found is not None
    return found


def test_what_a_row_says():
    found = row(MODES[3])
    assert (found.nodes, found.per_node, found.gradient_bytes) == (4, 4, 1e9)
    assert found.server
    assert found.partitioned
    assert found.overlapped
    assert found.network_bytes_per_s == 1.25e9


def test_rows_of_other_kinds_are_not_taken():
    assert exchange_row(Entry(cells={"id": "a-1", "model": "GPT", "gpus": "8"}, line=1)) is None


def test_the_formula_by_hand():
    one = row()
    kinds = {"rate": one.flop, "pcie": 1e30, "update": 1e30, one.share: 0.5, one.latency: 1e-9}
    ring = 2 * 3 / 4 * 1e9 / (0.5 * 1.25e9)
    assert ExchangeModel(kinds).seconds([one])[0] == pytest.approx(1 + ring, rel=1e-4)
    server = row(MODES[2])
    kinds |= {server.share: 0.5, server.latency: 1e-9}
    assert ExchangeModel(kinds).seconds([server])[0] == pytest.approx(1 + 1 / 0.625, rel=1e-4)


def test_overlap_hides_an_exchange_shorter_than_the_backward_pass():
    fast = row(MODES[1], gbps=1000)
    kinds = {"rate": fast.flop, "pcie": 1e30, "update": 1e30, fast.share: 1.0, fast.latency: 1e-9}
    assert ExchangeModel(kinds).seconds([fast])[0] == pytest.approx(1.0, rel=1e-3)


def test_the_optimizer_and_the_cutting_of_tensors_add_to_any_mode():
    cut = row(MODES[3])
    kinds = {"rate": cut.flop, "pcie": 1e30, "update": 4e9, cut.share: 1e9, cut.latency: 0.1}
    assert cut.latency == "scheduling:server"
    assert ExchangeModel(kinds).seconds([cut])[0] == pytest.approx(1 + 0.25 + 0.1, rel=1e-4)
    twice = replace(cut, tensors=2 * cut.tensors)
    assert ExchangeModel(kinds).seconds([twice])[0] == pytest.approx(1.35, rel=1e-4)


def planted() -> list[ExchangeRow]:
    rows = [row(m, d, g) for m in MODES for d in (4, 8, 16, 32) for g in (10, 100)]
    truth = ExchangeModel({"rate": 7e12, "pcie": 5e9, "model:bert-large": 1.0})
    return [
        replace(r, measured_s=float(t)) for r, t in zip(rows, truth.seconds(rows), strict=True)
    ]


def test_planted_constants_are_found_and_held_out_groups_predicted():
    rows = planted()
    model = fit_exchange(rows)
    measured = np.array([r.measured_s for r in rows])
    assert np.max(np.abs(model.seconds(rows) / measured - 1)) < 0.05
    found = hold_out(rows, rows, model)
    assert np.median(np.abs(found.value_s / measured - 1)) < 0.1


def test_constants_come_back_from_the_file(tmp_path):
    rows = planted()
    path = tmp_path / "exchange.json"
    save(fit_exchange(rows), rows, path)
    model, prints = load(path)
    assert row().fingerprint in prints
    assert model.seconds(rows) == pytest.approx(fit_exchange(rows).seconds(rows), rel=1e-3)
    path.write_text(path.read_text()[:100])
    with pytest.raises(InputError):
        load(path)


def test_the_shipped_constants_are_those_of_slow_networks():
    model, prints = load()
    assert prints
    shares = {k: v for k, v in model.values.items() if k.startswith("share:")}
    assert shares["share:10GbE/TCP/IP:all-reduce"] > shares["share:100GbE/TCP/IP:all-reduce"]
    assert all(0 < share < 1.2 for share in shares.values())
