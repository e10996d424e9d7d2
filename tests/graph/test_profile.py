"""GraphProfile: amounts, curves, the file, and what a broken file says."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import networkx as nx
import pytest

from autopar.core.errors import InputError
from autopar.graph import (
    Amount,
    Block,
    BlockCurve,
    BlockEdge,
    GraphProfile,
    Measurement,
    Op,
    OpEdge,
    OptimizerState,
)


def block(index: int, first: int, stop: int) -> Block:
    return Block(
        index=index,
        name=f"layer.{index}",
        first_op=first,
        stop_op=stop,
        signature="same",
        forward_flop=Amount(10.0, 100.0),
        backward_flop=Amount(0.0, 200.0),
        forward_bytes=Amount(0.0, 8.0),
        backward_bytes=Amount(0.0, 16.0),
        saved_bytes=Amount(0.0, 4.0),
        boundary_bytes=Amount(0.0, 2.0),
        peak_transient_bytes=Amount(0.0, 4.0),
        parameters=(f"w{index}",),
        parameter_bytes=40.0,
        kernels=2,
    )


def make_profile() -> GraphProfile:
    return GraphProfile(
        task="t",
        target=None,
        fingerprint="f",
        batch=4,
        device="cpu",
        parameters={"w0": (10, 40), "w1": (10, 40)},
        buffer_bytes=0.0,
        input_bytes=4.0,
        ops=tuple(
            Op(index=i, name=f"op{i}", target="aten.mm.default", module="m", kernels=1)
            for i in range(4)
        ),
        edges=tuple(
            OpEdge(producer=i, consumer=i + 1, size_bytes=Amount(0.0, 4.0), needs_gradient=True)
            for i in range(3)
        ),
        blocks=(block(0, 0, 2), block(1, 2, 4)),
        block_edges=(
            BlockEdge(
                tensor=1, producer=0, consumer=1, size_bytes=Amount(0.0, 4.0), needs_gradient=True
            ),
        ),
        optimizer=OptimizerState(name="SGD", state_bytes_per_parameter_byte=1.0),
        measurement=Measurement(
            device="cpu",
            busy_ranks=2,
            threads=1,
            curves={"same": BlockCurve(points=((1, 1.0, 2.0), (4, 2.5, 5.0)))},
            composition=((1, 1.1), (4, 1.0)),
            optimizer_s=0.1,
            optimizer_s_per_byte=0.1 / 80,
            zero_grad_s=0.0,
            resident_bytes=1e8,
            spread=0.05,
        ),
    )


def test_file_round_trip(tmp_path: Path) -> None:
    profile = make_profile()
    profile.save(tmp_path / "p.json")
    assert GraphProfile.load(tmp_path / "p.json") == profile


def test_sums_and_graphs() -> None:
    profile = make_profile()
    assert profile.forward_flop.at(4) == 2 * (10 + 400)
    assert profile.unique_blocks == 1
    assert nx.is_directed_acyclic_graph(profile.graph)
    assert profile.block_graph[0][1]["tensors"][0].size_bytes.at(2) == 8.0


def test_curve_interpolates_and_stays_positive() -> None:
    curve = BlockCurve(points=((2, 1.0, 2.0), (4, 3.0, 6.0)))
    assert curve.at(3) == (2.0, 4.0)
    assert curve.at(8) == (7.0, 14.0)
    assert curve.at(1)[0] == pytest.approx(0.1)


def _unordered(data: dict[str, Any]) -> None:
    data["ops"][0]["index"] = 3


def _backward_edge(data: dict[str, Any]) -> None:
    data["edges"][0][0] = 9


def _gap(data: dict[str, Any]) -> None:
    data["blocks"][1]["first_op"] = 3


def _missing(data: dict[str, Any]) -> None:
    del data["optimizer"]


def _zero_batch(data: dict[str, Any]) -> None:
    data["batch"] = 0


@pytest.mark.parametrize("spoil", [_unordered, _backward_edge, _gap, _missing, _zero_batch])
def test_inconsistent_files_are_refused(
    tmp_path: Path, spoil: Callable[[dict[str, Any]], None]
) -> None:
    path = tmp_path / "p.json"
    make_profile().save(path)
    data = json.loads(path.read_text())
    spoil(data)
    path.write_text(json.dumps(data))
    with pytest.raises(InputError, match=r"p\.json"):
        GraphProfile.load(path)
