from __future__ import annotations

import time

import pytest
import torch
from torch.utils import _pytree as pytree

from autopar.tasks import resolve, small_target, zoo_names

WITH_BATCH_NORM = {"resnet50", "efficientnet_b0"}
PARAMETERS = {
    "mlp": 330,
    "resnet50": 25_557_032,
    "efficientnet_b0": 5_288_548,
    "bert": 110_106_428,
    "gpt": 124_439_808,
    "llama": 6_738_415_616,
    "transformer": 139_420_416,
    "wavenet": 29_660_672,
    "vit": 86_567_656,
    "moe": 46_702_792_704,
    "dlrm": 24_036_595_969,
    "unet": 31_030_658,
    "shapes": 445_450,
    "chars": 4_796_416,
}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_every_model_of_the_contract_is_there():
    assert set(zoo_names()) == set(PARAMETERS)


@pytest.mark.parametrize("name", zoo_names())
def test_default_size_is_the_published_one(name):
    pytest.importorskip("transformers")
    with torch.device("meta"):
        model = resolve(f"zoo:{name}").model()
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[name]
    assert {p.device.type for p in model.parameters()} == {"meta"}
    assert all(module.training for module in model.modules())
    assert set(dict(model.named_buffers())) <= set(model.state_dict())


@pytest.mark.parametrize("name", zoo_names())
def test_batches_come_from_the_generator_alone(name):
    task = resolve(small_target(name))
    first, again = task.batch(3, generator(1)), task.batch(3, generator(1))
    other = task.batch(3, generator(2))
    torch.manual_seed(5)
    leaves = pytree.tree_leaves(first)
    assert all(torch.equal(a, b) for a, b in zip(leaves, pytree.tree_leaves(again), strict=True))
    assert not all(
        torch.equal(a, b) for a, b in zip(leaves, pytree.tree_leaves(other), strict=True)
    )
    assert all(leaf.shape[0] == 3 and leaf.device.type == "cpu" for leaf in leaves)
    assert all(leaf.dtype in (torch.float32, torch.int64) for leaf in leaves)
    assert all(leaf.shape[0] == 1 for leaf in pytree.tree_leaves(task.batch(1, generator())))


@pytest.mark.parametrize("name", zoo_names())
def test_mean_over_microbatches_is_mean_over_batch(name, small):
    task, module = small(name)
    if name in WITH_BATCH_NORM:
        module.eval()
    batch = task.batch(4, generator())
    whole = module(*batch)
    parts = [module(*pytree.tree_map(lambda t, i=i: t[i : i + 1], batch)) for i in range(4)]
    torch.testing.assert_close(torch.stack(parts).mean(), whole, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", zoo_names())
def test_small_models_are_fast_and_learn(name, small):
    task, module = small(name)
    optimizer = task.optimizer(module.parameters())
    held_out = task.batch(16, generator(99))
    with torch.no_grad():
        before = module(*held_out).item()
    source, seconds = generator(), []
    for _ in range(30):
        batch = task.batch(4, source)
        start = time.perf_counter()
        optimizer.zero_grad()
        module(*batch).backward()
        seconds.append(time.perf_counter() - start)
        optimizer.step()
    with torch.no_grad():
        assert module(*held_out).item() < before
    assert sorted(seconds)[15] < 0.5


@pytest.mark.parametrize("name", zoo_names())
def test_signals_and_gradients_are_neither_faint_nor_wild(name, small):
    task, module = small(name)
    inputs, target = task.batch(8, generator())
    module(inputs, target).backward()
    norms = torch.stack([p.grad.norm() for p in module.parameters()])
    assert 1e-2 < norms.norm() < 1e2
    # The biases of keys cancel in the softmax; everything else must feel the loss.
    assert (norms > 1e-6).float().mean() > 0.9


def test_weights_come_from_the_seed(small):
    _, first = small("gpt")
    _, second = small("gpt")
    state = second.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in first.state_dict().items())


def test_gpt_ties_its_embeddings(small):
    _, module = small("gpt")
    network = module.model.network
    assert network.lm_head.weight is network.transformer.wte.weight
    names = [key for key, _ in module.named_parameters()]
    assert not any("lm_head" in key for key in names)


def test_padding_does_not_reach_the_output_of_bert(small):
    task, module = small("bert")
    inputs, _ = task.batch(4, generator())
    changed = dict(inputs)
    padded = inputs["attention_mask"] == 0
    assert padded.any()
    changed["input_ids"] = torch.where(padded, 7, inputs["input_ids"])
    with torch.no_grad():
        before, after = module.model(**inputs)[0], module.model(**changed)[0]
    real = ~padded
    torch.testing.assert_close(before[real], after[real])
    assert not torch.equal(before[padded], after[padded])


@pytest.mark.parametrize("name", ["gpt", "llama", "moe", "wavenet", "chars"])
def test_autoregressive_models_do_not_see_the_future(name, small):
    task, module = small(name)
    inputs, _ = task.batch(2, generator())
    changed = inputs.clone()
    changed[:, -1] = (changed[:, -1] + 1) % 60
    with torch.no_grad():
        before, after = module.model(inputs), module.model(changed)
    torch.testing.assert_close(before[:, :-1], after[:, :-1])
    assert not torch.allclose(before[:, -1], after[:, -1])


@pytest.mark.parametrize("name", ["gpt", "llama"])
def test_replaced_parts_compute_what_transformers_computes(name, small):
    transformers = pytest.importorskip("transformers")
    task, module = small(name)
    ours = module.model.network
    config = type(ours.config)(**(ours.config.to_dict() | {"attn_implementation": "eager"}))
    if name == "gpt":
        config.activation_function = "gelu_new"
    theirs = getattr(transformers, type(ours).__name__)(config)
    theirs.load_state_dict(ours.state_dict())
    ids, _ = task.batch(2, generator())
    with torch.no_grad():
        expected = theirs(ids, use_cache=False).logits
        torch.testing.assert_close(module.model(ids), expected, rtol=1e-4, atol=1e-5)


def test_experts_with_room_for_all_are_a_dense_mixture():
    from torch.nn import functional

    from autopar.tasks.zoo.moe import Experts

    torch.manual_seed(0)
    layer = Experts(hidden=8, ffn=6, experts=4, top_k=2, places=5)
    x = torch.randn(3, 5, 8)
    weight, chosen = layer.router(x).softmax(-1).topk(2)
    weight = weight / weight.sum(-1, keepdim=True)
    mixture = torch.zeros(3, 5, 4).scatter(2, chosen, weight)
    gate, up = torch.einsum("nth,ehf->netf", x, layer.gate_up).chunk(2, dim=-1)
    each = torch.einsum("netf,efh->neth", functional.silu(gate) * up, layer.down)
    expected = torch.einsum("nte,neth->nth", mixture, each)
    torch.testing.assert_close(layer(x), expected)


def test_experts_without_room_pass_a_token_over():
    from autopar.tasks.zoo.moe import Experts

    layer = Experts(hidden=4, ffn=4, experts=2, top_k=1, places=1)
    with torch.no_grad():
        layer.router.weight.zero_()
        layer.router.weight[0] = 1.0
    output = layer(torch.ones(1, 3, 4))
    assert output[0, 0].abs().sum() > 0
    assert output[0, 1:].abs().sum() == 0


def test_gpt_of_a_trillion_parameters_can_be_named():
    pytest.importorskip("transformers")
    task = resolve("zoo:gpt?layers=128&hidden=25600&heads=160&seq=2048&vocab=51200")
    with torch.device("meta"):
        model = task.model()
    assert 1.0e12 < sum(p.numel() for p in model.parameters()) < 1.02e12
