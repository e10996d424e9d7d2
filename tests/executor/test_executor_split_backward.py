"""Backward in two halves must make the gradients of one whole backward, to the last bit."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from autopar.executor.stages.split_backward import backward_input

Forward = Callable[[nn.Module, torch.Tensor], tuple[torch.Tensor, ...]]


class Double(torch.autograd.Function):
    """A function in Python that takes a weight and an activation."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: torch.Tensor, w: torch.Tensor):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(x, w)
        return x * w * 2

    @staticmethod
    def backward(ctx, g: torch.Tensor):  # type: ignore[no-untyped-def,override]
        x, w = ctx.saved_tensors
        return g * w * 2, (g * x * 2).sum((0, 1))


class Layers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(6, 6)
        self.b = nn.Linear(6, 6)
        self.norm = nn.LayerNorm(6)
        self.batch = nn.BatchNorm1d(6)
        self.lstm = nn.LSTM(6, 6, batch_first=True)
        self.scale = nn.Parameter(torch.randn(6))


def plain(m: nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return (m.norm(F.relu(m.b(F.relu_(m.a(x))))),)


def tied(m: nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return (m.a(torch.tanh(m.a(torch.tanh(m.b(x))))),)


def several_outputs(m: nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """One is the input, one has no input behind it, two are parts of one value."""
    left, right = m.a(x).chunk(2, -1)
    return left, x, right.transpose(0, 1), torch.stack([m.a.weight, m.b.weight * 2])


def shared_transpose(m: nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    turned = m.a.weight.t()
    return (x @ turned @ (turned * 2) @ turned,)


def custom(m: nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return (Double.apply(m.a(x), m.scale * 3),)


def recurrent(m: nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    out, (state, _) = m.lstm(m.a(x))
    return out, m.batch(state[0])


CASES: list[Forward] = [plain, tied, several_outputs, shared_transpose, custom, recurrent]


def whole(forward: Forward, m: nn.Module) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    x = torch.randn(3, 4, 6, generator=torch.Generator().manual_seed(1), requires_grad=True)
    outputs = forward(m, x)
    gradients = [torch.full_like(o, 0.5).cumsum(-1) for o in outputs]
    torch.autograd.backward(outputs, gradients)
    assert x.grad is not None
    return x.grad, {n: p.grad for n, p in m.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("forward", CASES)
def test_halves_equal_the_whole(forward: Forward) -> None:
    torch.manual_seed(0)
    m = Layers()
    wanted_x, wanted = whole(forward, m)
    m.zero_grad()
    x = torch.randn(3, 4, 6, generator=torch.Generator().manual_seed(1), requires_grad=True)
    outputs = forward(m, x)
    gradients = [torch.full_like(o, 0.5).cumsum(-1) for o in outputs]
    (found,), half = backward_input(outputs, gradients, [x])
    assert all(p.grad is None for p in m.parameters())
    half.run()
    torch.testing.assert_close(found, wanted_x, rtol=0, atol=0)
    assert {n for n, p in m.named_parameters() if p.grad is not None} == set(wanted)
    for name, gradient in wanted.items():
        torch.testing.assert_close(m.get_parameter(name).grad, gradient, rtol=1e-6, atol=1e-6)


class Products(TorchDispatchMode):
    """Counts matrix products."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.count += "mm" in str(func)
        return func(*args, **(kwargs or {}))


def test_no_product_is_computed_twice() -> None:
    m = Layers()
    x = torch.randn(3, 4, 6, requires_grad=True)
    outputs = plain(m, x)
    with Products() as first:
        _, half = backward_input(outputs, [torch.ones_like(outputs[0])], [x])
    with Products() as second:
        half.run()
    assert (first.count, second.count) == (2, 2)


def test_without_inputs_all_is_left_to_the_second_half() -> None:
    m = Layers()
    outputs = plain(m, torch.randn(3, 4, 6))
    with Products() as first:
        found, half = backward_input(outputs, [torch.ones_like(outputs[0])], [])
    assert (found, first.count) == ([], 0)
    half.run()
    assert m.a.weight.grad is not None
