"""What is pushed and pulled: encodings, shares, and bytes as the mode declares them."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import executor_helpers
import executor_models as models
import pytest
import torch

from autopar.core.errors import InputError
from autopar.executor.server.encoding import ENCODINGS, Encoder, decode
from autopar.executor.server.layout import Entry, share_out
from autopar.executor.server.optimizers import coupling
from autopar.executor.server.protocol import ProtocolError
from autopar.sync import SyncGroup, parse_sync
from autopar.sync.base import Payload

ELEMENTS = 1000


def encoder(name: str) -> tuple[Encoder, float]:
    compression = parse_sync("ps_sync" if name == "none" else f"ps_sync+{name}").compression
    declared = compression.encoded_bytes(Payload(size_bytes=4.0 * ELEMENTS))
    return Encoder(compression), declared


@pytest.mark.parametrize("name", ENCODINGS)
def test_encodings_have_the_declared_bytes_and_come_back(name: str) -> None:
    flat = torch.randn(ELEMENTS, generator=torch.Generator().manual_seed(1))
    writer, declared = encoder(name)
    tensors = writer.encode(flat.clone())
    assert sum(t.numel() * t.element_size() for t in tensors) == declared
    found = decode(writer.name, tensors, ELEMENTS, torch.float32)
    error = {"none": 0.0, "fp16": 1e-3, "bf16": 8e-3, "int8": 1e-2}.get(name)
    if error is not None:
        assert float((found - flat).norm() / flat.norm()) <= error
    else:
        largest = flat.abs().topk(math.ceil(0.01 * ELEMENTS)).indices
        assert torch.equal(found.nonzero().flatten(), largest.sort().values)


def test_what_topk_leaves_out_is_sent_later() -> None:
    writer, _ = encoder("topk:0.1")
    total = torch.zeros(ELEMENTS)
    flat = torch.randn(ELEMENTS, generator=torch.Generator().manual_seed(2))
    total += decode("topk", writer.encode(flat.clone()), ELEMENTS, torch.float32)
    for _ in range(12):
        total += decode("topk", writer.encode(torch.zeros(ELEMENTS)), ELEMENTS, torch.float32)
    torch.testing.assert_close(total, flat)


@pytest.mark.parametrize(
    ("name", "tensors"),
    [
        ("none", [torch.zeros(ELEMENTS + 1)]),
        ("none", [torch.zeros(ELEMENTS, dtype=torch.float64)]),
        ("int8", [torch.zeros(4), torch.zeros(ELEMENTS)]),
        ("topk", [torch.zeros(1), torch.tensor([ELEMENTS], dtype=torch.int32)]),
        ("topk", [torch.zeros(1), torch.tensor([-1], dtype=torch.int32)]),
        ("zip", []),
    ],
)
def test_tensors_that_are_no_gradient_are_refused(name, tensors) -> None:
    with pytest.raises(ProtocolError):
        decode(name, tensors, ELEMENTS, torch.float32)


ENTRIES = [
    Entry(name="a", shape=(10, 7)),
    Entry(name="b", shape=()),
    Entry(name="c", shape=(33,)),
    Entry(name="d", shape=(2, 3, 4)),
]


@pytest.mark.parametrize("servers", [1, 2, 3, 5, 40])
@pytest.mark.parametrize("by_parameter", [False, True])
def test_every_element_is_on_one_server(servers: int, by_parameter: bool) -> None:
    shards = share_out(ENTRIES, servers, by_parameter=by_parameter)
    assert len(shards) == servers
    pieces = [piece for shard in shards for piece in shard]
    place = {entry.name: 0 for entry in ENTRIES}
    for piece in pieces:
        entry = next(e for e in ENTRIES if e.name == piece.name)
        assert piece.start == place[piece.name]
        assert piece.shape[1:] == entry.shape[1:]
        assert len(piece.shape) == len(entry.shape)
        assert not by_parameter or piece.shape == entry.shape
        place[piece.name] += piece.numel
    assert place == {entry.name: entry.numel for entry in ENTRIES}
    total, row = sum(e.numel for e in ENTRIES), max(e.row for e in ENTRIES)
    if not by_parameter:
        largest = max(sum(p.numel for p in shard) for shard in shards)
        assert largest <= total / servers + row


class Trust(torch.optim.Optimizer):
    """A step whose length depends on the whole parameter (LAMB), or on all of them."""

    def __init__(self, params, over_all: bool) -> None:
        super().__init__(params, {"lr": 0.1})
        self.over_all = over_all

    @torch.no_grad()
    def step(self, closure=None):
        (group,) = self.param_groups
        norms = [p.grad.norm() for p in group["params"]]
        everything = torch.stack(norms).norm()
        for parameter, norm in zip(group["params"], norms, strict=True):
            parameter.sub_(0.1 * parameter.grad / (everything if self.over_all else norm))


def test_optimizers_are_known_by_what_they_do() -> None:
    for make in (torch.optim.SGD, torch.optim.AdamW, torch.optim.RMSprop, torch.optim.NAdam):
        assert coupling(lambda p, make=make: make(p, lr=0.01)) == "elements"
    assert coupling(lambda p: Trust(p, over_all=False)) == "parameters"
    with pytest.raises(InputError, match="by what others have"):
        coupling(lambda p: Trust(p, over_all=True))
    with pytest.raises(InputError, match="cannot run on a parameter server"):
        coupling(torch.optim.LBFGS)


def test_an_optimizer_over_whole_parameters_is_exact(tmp_path: Path) -> None:
    task = replace(models.mlp(), optimizer=lambda p: Trust(p, over_all=False))
    plan = executor_helpers.make_plan(task, dp=2, sync="ps_sync")
    record = executor_helpers.run(plan, task, tmp_path, verify=True)
    assert record.verify is not None
    assert record.verify.passed, record.verify
    assert any("whole parameters" in text for text in record.warnings)


@pytest.mark.parametrize(
    ("sync", "ranks"),
    [
        ("ps_sync", 2),
        ("ps_sync:2", 4),
        ("ps_stale:2", 2),
        ("ps_stale:2:1", 2),
        ("ps_async", 4),
        ("ps_async+int8", 2),
        ("ps_sync+topk:0.05", 2),
    ],
)
def test_bytes_sent_are_those_declared(sync: str, ranks: int, tmp_path: Path) -> None:
    task = models.mlp(width=192, depth=2)
    plan = executor_helpers.make_plan(task, dp=ranks, sync=sync)
    record = executor_helpers.run(plan, task, tmp_path, steps=9, warmup=2)
    size = 4.0 * 2 * (192 * 192 + 192)
    declared = parse_sync(sync).work(size, SyncGroup(ranks=ranks)).sent_bytes
    assert record.bytes_sent[0] == pytest.approx(declared, rel=0.01)


def test_a_checkpoint_of_servers_goes_on_anywhere(tmp_path: Path) -> None:
    """Optimizer state comes from the servers and goes back to them; other plans read it too."""
    task = replace(models.mlp(), optimizer=lambda p: torch.optim.AdamW(p, lr=0.01))
    plan = executor_helpers.make_plan(task, dp=2, sync="ps_sync", clip_norm=0.5)
    plain = executor_helpers.make_plan(task, dp=2, clip_norm=0.5)
    options = {"warmup": 0, "checkpoint_every": 4}
    whole = executor_helpers.run(plain, task, tmp_path / "whole", steps=8, warmup=0)
    executor_helpers.run(plan, task, tmp_path / "first", steps=4, **options)
    at = tmp_path / "first" / "checkpoints"
    for number, second in enumerate((plan, plain)):
        out = tmp_path / f"second-{number}"
        record = executor_helpers.run(second, task, out, steps=4, warmup=0, resume=at)
        assert record.losses == pytest.approx(whole.losses[4:], rel=1e-5)


def test_independent_ranks_save_what_the_servers_hold(tmp_path: Path) -> None:
    task = models.mlp()
    plan = executor_helpers.make_plan(task, dp=2, sync="ps_async")
    executor_helpers.run(plan, task, tmp_path / "a", steps=6, warmup=0, checkpoint_every=3)
    assert (tmp_path / "a" / "checkpoints" / "latest").read_text().strip() == "step-6"
    at = tmp_path / "a" / "checkpoints"
    record = executor_helpers.run(plan, task, tmp_path / "b", steps=3, warmup=0, resume=at)
    assert len(record.losses) == 3
