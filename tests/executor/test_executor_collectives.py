"""Gradients of the collectives equal autograd's through the same thing in one process."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from executor_ranks import on_ranks
from torch.fx import Graph, GraphModule
from torch.utils.checkpoint import checkpoint

from autopar.executor.division.collectives import Collectives
from autopar.executor.measuring.traffic import Traffic
from autopar.executor.mesh_groups import Group

RANKS = 2
SHAPE = (2, 4, 6)
Tensors = list[torch.Tensor]


def group() -> Group:
    return Group(tuple(range(RANKS)), dist.group.WORLD)


def pieces(tensor: torch.Tensor, dim: int) -> Tensors:
    return list(torch.chunk(tensor, RANKS, dim))


def total(inputs: Tensors) -> torch.Tensor:
    return torch.stack(inputs).sum(0)


def swapped(inputs: Tensors) -> Tensors:
    rows = [pieces(x, 2) for x in inputs]
    return [torch.cat([row[i] for row in rows], 1) for i in range(RANKS)]


CASES: dict[str, tuple[tuple[int, ...], Callable[[Tensors], Tensors], bool]] = {
    # name: dims, what the ranks get from what they give, all ranks then compute the same
    "sum_forward": ((), lambda xs: [total(xs)] * RANKS, True),
    "sum_both": ((), lambda xs: [total(xs)] * RANKS, False),
    "gather": ((1,), lambda xs: [torch.cat(xs, 1)] * RANKS, False),
    "gather_whole": ((1,), lambda xs: [torch.cat(xs, 1)] * RANKS, True),
    "scatter_sum": ((1,), lambda xs: pieces(total(xs), 1), False),
    "exchange": ((2, 1), swapped, False),
}


def weights(same: bool, shape: torch.Size) -> Tensors:
    generator = torch.Generator().manual_seed(7)
    first = torch.randn(shape, generator=generator)
    return [first, first if same else torch.randn(shape, generator=generator)]


def given(requires_grad: bool = True) -> Tensors:
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(SHAPE, generator=generator).requires_grad_(requires_grad) for _ in "ab"]


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("again", [False, True])
def test_gradient_equals_that_of_one_process(name: str, again: bool) -> None:
    dims, model, same = CASES[name]
    inputs = given()
    outputs = model(inputs)
    factors = weights(same, outputs[0].shape)
    terms = [(o * f).sum() for o, f in zip(outputs, factors, strict=True)]
    expected = torch.autograd.grad(terms[0] if same else terms[0] + terms[1], inputs)

    def work(rank: int) -> Any:
        call = getattr(Collectives(group(), Traffic()), name)
        mine = given()[rank]
        got = checkpoint(call, mine, *dims, use_reentrant=False) if again else call(mine, *dims)
        torch.autograd.backward((got * factors[rank]).sum())
        return got.detach(), mine.grad

    for rank, (got, gradient) in enumerate(on_ranks(RANKS, work)):
        torch.testing.assert_close(got, outputs[rank].detach())
        torch.testing.assert_close(gradient, expected[rank])


@pytest.mark.parametrize("name", ["sum_backward", "part"])
def test_what_enters_a_divided_region(name: str) -> None:
    """The ranks hold one value; its gradient is the sum of what each does with it."""
    whole = given()[0]
    outputs = pieces(whole, 1) if name == "part" else [whole] * RANKS
    factors = weights(False, outputs[0].shape)
    terms = [(o * f).sum() for o, f in zip(outputs, factors, strict=True)]
    (expected,) = torch.autograd.grad(terms[0] + terms[1], whole)

    def work(rank: int) -> Any:
        call = getattr(Collectives(group(), Traffic()), name)
        mine = given()[0]
        got = call(mine, 1) if name == "part" else call(mine)
        torch.autograd.backward((got * factors[rank]).sum())
        return got.detach(), mine.grad

    for rank, (got, gradient) in enumerate(on_ranks(RANKS, work)):
        torch.testing.assert_close(got, outputs[rank].detach())
        torch.testing.assert_close(gradient, expected)


def test_bytes_are_counted_both_ways() -> None:
    size = 2 * 4 * 6 * 4

    def work(rank: int) -> tuple[float, float]:
        traffic = Traffic()
        calls = Collectives(group(), traffic)
        torch.autograd.backward(calls.gather(given()[rank], 1).sum())
        first = traffic.take()
        torch.autograd.backward(calls.sum_forward(given()[rank]).sum())
        return first, traffic.take()

    for gathered, summed in on_ranks(RANKS, work):
        assert gathered == 2 * size  # both ways half of two parts
        assert summed == size


def test_graphs_name_the_calls_of_two_groups() -> None:
    def work(rank: int) -> torch.Tensor:
        alone = Collectives(Group((rank,), None), Traffic())
        both = Collectives(group(), Traffic())
        graph = Graph()
        x = graph.placeholder("x")
        first = graph.call_function(alone.sum_forward, (x,))
        graph.output(graph.call_function(both.sum_forward, (first,)))
        result: torch.Tensor = GraphModule({}, graph)(torch.ones(3))
        return result

    assert [r.tolist() for r in on_ranks(RANKS, work)] == [[2.0] * 3] * 2
