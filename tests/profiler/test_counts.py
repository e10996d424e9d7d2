"""Counts per op against torch's own counter, real autograd, and arithmetic by hand."""

from __future__ import annotations

import operator

import pytest
import torch
from profiler_cases import case, task_of
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from autopar.profiler.counting.dataflow import count
from autopar.profiler.counting.flops import NOTES
from autopar.tasks import zoo_names
from autopar.trace import build_model, trace
from autopar.trace.export import call_model, make_batch


def counted_by_torch(task, batch, mapping=None) -> float:
    model = build_model(task)
    inputs, target = make_batch(task, batch)
    with FlopCounterMode(display=False, custom_mapping=mapping) as counter:
        task.loss(call_model(model, inputs), target).backward()
    return counter.get_total_flops()


def total_flop(graph, batch) -> float:
    return sum(op.forward_flop.at(batch) + op.backward_flop.at(batch) for op in graph.ops)


@pytest.mark.parametrize("name", zoo_names())
def test_flop_agree_with_flop_counter_mode(name):
    it = case(name)
    assert it.graph.stock_flop == pytest.approx(counted_by_torch(it.task, 4), rel=1e-6)
    if it.graph.corrections:
        assert set(it.graph.corrections) <= set(NOTES)
        assert total_flop(it.graph, 4) != pytest.approx(it.graph.stock_flop, rel=1e-9)
    else:
        assert total_flop(it.graph, 4) == pytest.approx(it.graph.stock_flop, rel=1e-9)


@pytest.mark.parametrize("name", ["gpt", "bert", "llama", "vit"])
def test_flop_agree_once_torch_counts_cpu_attention(name):
    from torch.utils.flop_counter import sdpa_backward_flop, sdpa_flop

    aten = torch.ops.aten
    mapping = {
        aten._scaled_dot_product_flash_attention_for_cpu: sdpa_flop,
        aten._scaled_dot_product_flash_attention_for_cpu_backward: sdpa_backward_flop,
    }
    for formula in mapping.values():
        formula._get_raw = True
    it = case(name)
    expected = counted_by_torch(it.task, 4, mapping)
    assert total_flop(it.graph, 4) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("name", zoo_names())
def test_saved_bytes_are_what_autograd_keeps(name):
    it = case(name)
    leaves = it.traced.flatten(*make_batch(it.task, 4))
    given = [*leaves]
    for node in it.traced.module.graph.nodes:
        if node.op == "get_attr":
            given.append(operator.attrgetter(node.target)(it.traced.module))
    known = {t.untyped_storage().data_ptr() for t in given}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        place = tensor.untyped_storage().data_ptr()
        if place not in known:
            kept[place] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        it.traced.module(*leaves)
    expected = sum(t.untyped_storage().nbytes() for t in kept.values())
    assert sum(op.saved_bytes.at(4) for op in it.graph.ops) == expected


@pytest.mark.parametrize("name", ["gpt", "resnet50", "unet", "dlrm"])
def test_amounts_hold_at_another_batch(name):
    it = case(name)
    other = count(trace(it.task, 2, device="meta"))
    for kind in ("forward_flop", "backward_flop", "saved_bytes", "forward_bytes"):
        here = sum(getattr(op, kind).at(2) for op in it.graph.ops)
        there = sum(getattr(op, kind).at(2) for op in other.ops)
        assert here == pytest.approx(there, rel=0.02), kind


def test_linear_layer_by_hand():
    task = task_of(lambda: nn.Linear(8, 4, bias=False))
    graph = count(trace(task, 2, device="meta"))
    linear = next(op for op in graph.ops if "linear" in op.target)
    assert linear.forward_flop.at(2) == 2 * 2 * 8 * 4
    assert linear.backward_flop.at(2) == 2 * 2 * 8 * 4  # the batch needs no gradient
    assert linear.forward_bytes.at(2) == 4 * (2 * 8 + 8 * 4 + 2 * 4)
    assert linear.forward_bytes.fixed == 4 * 8 * 4  # the weight is read whatever the batch
    assert linear.output_bytes.per_sample == 4 * 4


@pytest.mark.parametrize("groups", [1, 2, 6])
@pytest.mark.parametrize("transposed", [False, True])
def test_grouped_convolution_backward_is_twice_its_forward(groups, transposed):
    kind = nn.ConvTranspose2d if transposed else nn.Conv2d

    def model():
        return nn.Sequential(
            nn.Conv2d(3, 6, 1), kind(6, 12, 3, groups=groups, bias=False), nn.Flatten()
        )

    size = 10 if transposed else 6
    task = task_of(model, shape=(3, 8, 8), classes=12 * size * size)
    graph = count(trace(task, 2, device="meta"))
    op = next(
        op
        for op in graph.ops
        if "conv" in op.target
        and "weight" in op.parameters[0][2:]
        and op.parameters[0].startswith("1.")
    )
    positions = 8 * 8 if transposed else 6 * 6
    assert op.forward_flop.at(2) == 2 * 2 * positions * 9 * 6 * 12 / groups
    assert op.backward_flop.at(2) == 2 * op.forward_flop.at(2)


def test_views_cost_nothing_and_products_are_counted():
    graph = case("gpt").graph
    views = [op for op in graph.ops if op.target.startswith(("aten.view", "aten.transpose"))]
    assert views and all(
        op.kernels == 0 and op.forward_bytes.at(4) == 0 and op.output_bytes.at(4) == 0
        for op in views
    )
    assert "aten.addmm.default" not in graph.uncounted
    assert "aten.layer_norm.default" in graph.uncounted


def test_equal_layers_are_priced_once():
    few, many = (
        count(
            trace(
                task_of(lambda n=n: nn.Sequential(*(nn.Linear(8, 8) for _ in range(n)))),
                2,
                device="meta",
            )
        ).distinct
        for n in (3, 30)
    )
    assert few == many


def test_a_tied_weight_is_one_parameter():
    it = case("gpt")
    readers = [op for op in it.graph.ops if any("wte" in p for p in op.parameters)]
    assert len(readers) == 2
    assert readers[0].parameters == readers[1].parameters


def test_no_gradient_flows_through_frozen_layers():
    def model():
        net = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 4))
        net[0].requires_grad_(False)
        return net

    graph = count(trace(task_of(model), 2, device="meta"))
    first, second = (op for op in graph.ops if "linear" in op.target)
    assert first.backward_flop.at(2) == 0
    assert second.backward_flop.at(2) == second.forward_flop.at(2)
    assert first.saved_bytes.at(2) > 0  # the input of the second layer, for its weight gradient


def test_op_of_unknown_size_is_named_not_dropped():
    class Strange(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(8, 4)

        def forward(self, x):
            y = self.linear(x)
            return y * torch.masked_select(y, y > 0).sum()

    graph = count(trace(task_of(Strange), 2, device="cpu"))
    assert "cannot be run alone" in graph.uncounted["aten.masked_select.default"]
    assert total_flop(graph, 2) > 0
