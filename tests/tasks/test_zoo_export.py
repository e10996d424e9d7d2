from __future__ import annotations

import time

import pytest
import torch
from torch.utils import _pytree as pytree

from autopar.tasks import resolve, zoo_names


def capture(module, batch):
    return torch.export.export(module, batch, strict=False)


def on_meta(batch):
    return pytree.tree_map(lambda t: t.to("meta"), batch)


def calls(program):
    return [str(node.target) for node in program.graph.nodes if node.op == "call_function"]


@pytest.mark.parametrize("name", zoo_names())
def test_exported_loss_gradients_and_buffers_equal_eager_ones(name, small):
    task, module = small(name)
    batch = task.batch(4, torch.Generator().manual_seed(0))
    program = capture(module, batch)
    state = {key: value.clone() for key, value in module.state_dict().items()}

    loss = module(*batch)
    loss.backward()
    gradients = {key: p.grad for key, p in module.named_parameters() if p.grad is not None}
    after = {key: value.clone() for key, value in module.state_dict().items()}
    module.zero_grad(set_to_none=True)
    module.load_state_dict(state)

    exported = program.module()
    exported.load_state_dict(state)
    exported_loss = exported(*batch)
    exported_loss.backward()
    torch.testing.assert_close(exported_loss, loss)
    found = {key: p.grad for key, p in exported.named_parameters() if p.grad is not None}
    assert set(found) == set(gradients)
    assert gradients
    for key, gradient in gradients.items():
        torch.testing.assert_close(found[key], gradient)

    buffers = dict(exported.named_buffers())
    moved = [key for key in buffers if key in state and not torch.equal(state[key], after[key])]
    assert bool(moved) == (name in {"resnet50", "efficientnet_b0"})
    for key in moved:
        torch.testing.assert_close(buffers[key], after[key])


@pytest.mark.parametrize("name", zoo_names())
def test_every_parameter_learns(name, small):
    task, module = small(name)
    module(*task.batch(4, torch.Generator().manual_seed(0))).backward()
    assert [key for key, p in module.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("name", zoo_names())
def test_meta_export_has_the_same_operations(name, small):
    task, module = small(name)
    batch = task.batch(2, torch.Generator().manual_seed(0))
    with torch.device("meta"):
        empty = type(module)(task, task.model())
    program = capture(empty, on_meta(batch))
    assert calls(program) == calls(capture(module, batch))
    kinds = {node.op for node in program.graph.nodes}
    assert kinds == {"placeholder", "call_function", "output"}
    assert not program.range_constraints
    assert not program.constants


@pytest.mark.parametrize("name", ["gpt", "llama", "moe"])
def test_causal_attention_needs_no_mask(name, small):
    task, module = small(name)
    program = capture(module, task.batch(2, torch.Generator().manual_seed(0)))
    attention = [n for n in program.graph.nodes if "scaled_dot_product" in str(n.target)]
    assert len(attention) == {"gpt": 4, "llama": 4, "moe": 2}[name]
    for node in attention:
        assert node.kwargs.get("attn_mask") is None
        assert len(node.args) < 4 or node.args[3] is None
        assert node.kwargs.get("is_causal") or node.args[5]


@pytest.mark.slow
@pytest.mark.parametrize("name", zoo_names())
def test_full_models_export_on_meta(name, loss_module):
    task = resolve(f"zoo:{name}")
    batch = task.batch(1, torch.Generator().manual_seed(0))
    with torch.device("meta"):
        module = loss_module(task, task.model())
    assert calls(capture(module, on_meta(batch)))


@pytest.mark.slow
def test_gpt_3_exports_within_40_seconds(loss_module):
    start = time.perf_counter()
    task = resolve("zoo:gpt?layers=96&hidden=12288&heads=96&seq=2048&vocab=51200")
    with torch.device("meta"):
        module = loss_module(task, task.model())
    batch = task.batch(1, torch.Generator().manual_seed(0))
    capture(module, on_meta(batch))
    assert 1.7e11 < sum(p.numel() for p in module.parameters()) < 1.8e11
    assert time.perf_counter() - start < 40.0


def test_dropout_is_an_option(loss_module):
    for name in ("gpt", "bert", "transformer", "vit", "llama", "moe", "efficientnet_b0"):
        task = resolve(f"zoo:{name}?size=small&dropout=0.5")
        torch.manual_seed(0)
        module = loss_module(task, task.model())
        batch = task.batch(2, torch.Generator().manual_seed(0))
        assert module(*batch).item() != module(*batch).item(), name
