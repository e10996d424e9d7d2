"""The chain of blocks: covers all ops, finds repeats, cuts where it is cheap and legal."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import pytest
import torch
from profiler_cases import case, task_of
from torch import nn

from autopar.profiler.counting.blocks import build_blocks
from autopar.profiler.counting.dataflow import count
from autopar.profiler.counting.segmentation import BlockPolicy, crossing_bytes
from autopar.tasks import resolve, zoo_names
from autopar.trace import extract, trace


def blocks_of(target: str, batch: int = 4):
    traced = trace(resolve(target), batch, device="meta")
    graph = count(traced)
    return traced, graph, *build_blocks(traced, graph)


@pytest.mark.parametrize("name", zoo_names())
def test_blocks_cover_the_ops_and_sum_to_the_graph(name):
    it = case(name)
    blocks, edges = build_blocks(it.traced, it.graph)
    assert blocks[0].first_op == 0 and blocks[-1].stop_op == len(it.graph.ops)
    assert all(a.stop_op == b.first_op for a, b in pairwise(blocks))
    assert 4 <= len(blocks) <= 120
    for kind in ("forward_flop", "backward_flop", "forward_bytes", "saved_bytes"):
        whole = sum(getattr(op, kind).at(3) for op in it.graph.ops)
        assert sum(getattr(b, kind).at(3) for b in blocks) == pytest.approx(whole)
    assert all(b.kernels > 0 for b in blocks)
    assert all(e.tensor not in it.traced.replicated for e in edges)
    for block in blocks:
        entering = {e.tensor: e.size_bytes.at(4) for e in edges if e.consumer == block.index}
        assert block.boundary_bytes.at(4) == pytest.approx(sum(entering.values()))


@pytest.mark.parametrize("name", zoo_names())
def test_every_block_can_be_cut_out_and_its_imports_are_the_edges(name):
    it = case(name)
    blocks, edges = build_blocks(it.traced, it.graph)
    for block in blocks:
        fragment = extract(it.traced, block.first_op, block.stop_op)
        assert set(fragment.imports) == {e.tensor for e in edges if e.consumer == block.index}
        assert set(fragment.parameters) == set(block.parameters)


def test_gpt_layers_are_found_once():
    _, _, blocks, edges = blocks_of("zoo:gpt?layers=12&hidden=64&heads=4&vocab=512&seq=64")
    layers = [b for b in blocks if ".h." in b.name]
    assert [b.name.rpartition(".")[2] for b in layers] == [str(i) for i in range(12)]
    assert len({b.signature for b in layers}) == 1
    assert len({b.signature for b in blocks}) <= 4
    for block in layers:
        assert len([e for e in edges if e.consumer == block.index]) == 1  # the residual stream
        assert all(e.needs_gradient for e in edges if e.consumer == block.index)


def test_resnet50_bottlenecks_are_found():
    _, _, blocks, _ = blocks_of("zoo:resnet50")
    counts = sorted(Counter(b.signature for b in blocks).values())
    assert counts[-4:] == [2, 2, 3, 5]  # 3, 4, 6 and 3 bottlenecks, the first of each differs


def test_few_layers_are_halved_between_attention_and_feed_forward():
    traced, graph, blocks, _ = blocks_of("zoo:gpt?layers=2&hidden=64&heads=4&vocab=256&seq=32")
    crossing = crossing_bytes(traced, graph)
    stream = 4 * 4 * 32 * 64
    assert len(blocks) > 4
    for block in blocks[1:]:
        assert crossing[block.first_op] <= 1.25 * stream + 4 * 32 * 64
    assert len({b.signature for b in blocks}) < len(blocks)


def test_flat_code_is_cut_at_narrow_places():
    class Flat(nn.Module):
        """No submodules; wide inside each round, narrow between rounds."""

        def __init__(self):
            super().__init__()
            self.up = nn.ParameterList(nn.Parameter(torch.empty(8, 256)) for _ in range(12))
            self.down = nn.ParameterList(nn.Parameter(torch.empty(256, 8)) for _ in range(12))

        def forward(self, x):
            for up, down in zip(self.up, self.down, strict=True):
                x = x + torch.relu(x @ up) @ down
            return x

    task = task_of(Flat, classes=8)
    traced = trace(task, 4, device="meta")
    graph = count(traced)
    blocks, _ = build_blocks(traced, graph)
    crossing = crossing_bytes(traced, graph)
    assert 4 <= len(blocks) <= 24
    assert all(crossing[b.first_op] <= 2 * 4 * 8 * 4 for b in blocks[1:])


def test_residual_additions_stay_with_their_layers():
    class Stack(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList(
                nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 8)) for _ in range(10)
            )
            self.body = nn.ModuleList(Layer() for _ in range(10))

        def forward(self, x):
            for layer in self.body:
                x = x + layer(x)
            return x

    class Layer(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(8, 32), nn.Linear(32, 8)

        def forward(self, x):
            return self.b(torch.relu(self.a(x)))

    traced = trace(task_of(Stack, classes=8), 4, device="meta")
    graph = count(traced)
    blocks, edges = build_blocks(traced, graph)
    layers = [b for b in blocks if b.name.startswith("body.")]
    assert len(layers) == 10
    assert len({b.signature for b in layers[1:]}) == 1  # the first one's input has no gradient
    assert all(len([e for e in edges if e.consumer == b.index]) == 1 for b in layers[1:])


def test_deep_stacks_are_joined_in_equal_groups():
    class Layer(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(8, 8)

        def forward(self, x):
            return torch.tanh(self.linear(x))

    stack = task_of(lambda: nn.Sequential(*(Layer() for _ in range(64))), classes=8)
    traced = trace(stack, 4, device="meta")
    graph = count(traced)
    assert len(build_blocks(traced, graph)[0]) > 60
    blocks, _ = build_blocks(traced, graph, BlockPolicy(most=40))
    assert len(blocks) <= 40
    assert Counter(b.signature for b in blocks).most_common(1)[0][1] >= 25


def test_signature_sees_shapes_gradients_and_readers():
    def last_layers(width: int, frozen: bool):
        def model():
            net = nn.Sequential(nn.Linear(8, width), nn.ReLU(), nn.Linear(width, 8))
            net[0].requires_grad_(not frozen)
            return net

        traced = trace(task_of(model, classes=8), 4, device="meta")
        blocks, _ = build_blocks(traced, count(traced))
        return blocks[-1].signature, blocks[0].signature

    plain = last_layers(16, False)
    assert plain == last_layers(16, False)
    assert plain[1] != last_layers(32, False)[1]
    assert plain[1] != last_layers(16, True)[1]
