"""Tracing a task and cutting it at every legal place must change nothing."""

from __future__ import annotations

import sys
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from autopar.core.errors import InputError, TraceError
from autopar.tasks import Task
from autopar.trace import extract, trace


class Awkward(nn.Module):
    """Tied weights, a skip, BatchNorm, an in-place op, a mask, a tuple op and two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(50, 16)
        self.norm = nn.BatchNorm1d(16)
        self.up = nn.Linear(16, 32)
        self.down = nn.Linear(32, 16)
        self.act = nn.ReLU(inplace=True)
        self.head = nn.Linear(16, 50, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        mask = tokens > 3
        hidden = self.norm(self.embedding(tokens).transpose(1, 2)).transpose(1, 2)
        left, right = self.act(self.up(hidden)).chunk(2, -1)
        hidden = (self.down(torch.cat([left, right], -1)) + hidden) * mask[..., None]
        return self.head(hidden), hidden


def make_task(model: type[nn.Module] = Awkward) -> Task:
    return Task(
        name="awkward",
        model=model,
        batch=lambda n, g: (
            torch.randint(0, 50, (n, 7), generator=g),
            torch.randint(0, 50, (n, 7), generator=g),
        ),
        loss=lambda out, t: (
            F.cross_entropy(out[0].flatten(0, 1), t.flatten()) + out[1].pow(2).mean()
        ),
        optimizer=lambda params: torch.optim.SGD(params, lr=0.1),
    )


def test_every_legal_cut_gives_the_same_loss_and_gradients() -> None:
    traced = trace(make_task(), 4)
    leaves = traced.flatten(*traced.task.batch(4, torch.Generator().manual_seed(1)))
    traced.module(*leaves).backward()
    reference = {
        n: p.grad.clone() for n, p in traced.module.named_parameters() if p.grad is not None
    }
    assert len(reference) == 7
    for cut in sorted(traced.cuts):
        traced.module.zero_grad()
        head, tail = extract(traced, 0, cut), extract(traced, cut, len(traced.nodes))
        values = head.module(*(leaves[i] for i in head.batch_leaves))
        assert head.exports == tail.imports
        (loss,) = tail.module(*(leaves[i] for i in tail.batch_leaves), *values)
        loss.backward()
        for name, parameter in traced.module.named_parameters():
            if name in reference:
                torch.testing.assert_close(parameter.grad, reference[name], msg=f"{cut} {name}")


def test_in_place_activation_is_cut_free_and_masks_are_replicated() -> None:
    traced = trace(make_task(), 4)
    targets = [str(node.target) for node in traced.nodes]
    assert "aten.relu.default" in targets
    assert "aten.relu_.default" not in targets
    assert targets.index("aten.gt.Scalar") in traced.replicated
    assert len(traced.nodes) - 1 not in traced.replicated
    uncut = set(range(1, len(traced.nodes))) - traced.cuts
    assert uncut == {i for i, t in enumerate(targets) if "getitem" in t}


def test_fingerprint_is_independent_of_batch_and_device() -> None:
    task = make_task()
    prints = {
        trace(task, n, device=d).fingerprint for n, d in ((1, "cpu"), (4, "meta"), (8, "cpu"))
    }
    assert len(prints) == 1


def test_tied_parameter_has_one_name_in_both_fragments() -> None:
    traced = trace(make_task(), 2)
    cut = next(k for k in sorted(traced.cuts, reverse=True) if "linear" in traced.nodes[k].name)
    head, tail = extract(traced, 0, cut), extract(traced, cut, len(traced.nodes))
    assert "embedding.weight" in head.parameters
    assert "embedding.weight" in tail.parameters


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x) if x.sum() > 0 else x


def test_data_dependent_control_flow_is_named() -> None:
    task = Task(
        name="branching",
        model=Branching,
        batch=lambda n, g: (torch.randn(n, 3, generator=g), torch.zeros(n, 3)),
        loss=lambda out, t: (out - t).pow(2).mean(),
        optimizer=lambda params: torch.optim.SGD(params, lr=0.1),
    )
    with pytest.raises(TraceError, match="branching"):
        trace(task, 2)


def test_bad_cut_is_refused() -> None:
    traced = trace(make_task(), 2)
    with pytest.raises(InputError, match="empty"):
        extract(traced, 3, 3)
    with pytest.raises(InputError, match="cannot be cut"):
        extract(traced, 0, next(i for i in range(1, 99) if i not in traced.cuts))


class Recurrent(nn.Module):
    """torch warns of the attributes that an LSTM sets while it is exported."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(4, 4, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        warnings.warn("mine", stacklevel=1)
        sys.stderr.write("also mine\n")
        return self.rnn(x)[0]


def test_only_what_the_model_itself_says_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    task = Task(
        name="recurrent",
        model=Recurrent,
        batch=lambda n, g: (torch.randn(n, 3, 4, generator=g), torch.zeros(n, 3, 4)),
        loss=F.mse_loss,
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1),
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trace(task, 2)
    assert {str(warning.message) for warning in caught} == {"mine"}
    assert set(capsys.readouterr().err.splitlines()) == {"also mine"}
