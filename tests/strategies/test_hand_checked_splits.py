"""Divisions counted by hand: GPT, grouped queries, convolutions, experts, losses."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import nn

from autopar.strategies import BlockWork, Split, Strategies
from autopar.strategies.tensor import short
from autopar.tasks import Task, small_target

HIDDEN, SEQUENCE, ITEM = 64, 32, 4
TP = Split(tp=2)
TP_SP = Split(tp=2, sequence_parallel=True)


def traffic(works: tuple[BlockWork, ...]) -> Counter[tuple[str, str, float]]:
    """Collectives by kind, phase and bytes per sample."""
    return Counter(
        (item.kind, item.phase, item.size_bytes.per_sample)
        for work in works
        for item in work.collectives
    )


def layer_of(strategies: Strategies, layer: str, split: Split) -> tuple[BlockWork, ...]:
    """Works of the blocks whose parameters belong to one layer."""
    pairs = zip(strategies.profile.blocks, strategies.works(split), strict=True)
    return tuple(w for b, w in pairs if any(layer in name for name in b.parameters))


def trunk(task_loss=nn.functional.mse_loss, *, layers: nn.Module, classes: int = 0) -> Task:
    """A task on vectors of 16 numbers, to classify or to copy."""

    def batch(n: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        x = torch.randn(n, 16, generator=generator)
        return x, torch.randint(classes, (n,), generator=generator) if classes else x

    return Task(
        name=f"{type(layers).__name__}-{id(layers)}",
        model=lambda: layers,
        batch=batch,
        loss=task_loss,
        optimizer=lambda params: torch.optim.SGD(params, lr=0.1),
    )


@pytest.fixture
def gpt(profiles) -> Strategies:
    return Strategies(profiles(small_target("gpt")))


def test_gpt_layer_halves_its_matrices_and_keeps_norms_and_row_biases(gpt):
    held = sum(gpt.elements(TP, name) for name in gpt.profile.parameters if ".h.1." in name)
    matrices, column_biases = 12 * HIDDEN**2, (3 + 4) * HIDDEN
    row_biases, norms = 2 * HIDDEN, 4 * HIDDEN
    assert held == (matrices + column_biases) / 2 + row_biases + norms


def test_gpt_layer_reduces_twice_forward_and_twice_backward(gpt):
    size = SEQUENCE * HIDDEN * ITEM
    found = traffic(gpt.works(TP)[1:3])
    assert found == {("all_reduce", "forward", size): 2, ("all_reduce", "backward", size): 2}


def test_sequence_parallel_gpt_scatters_and_gathers_the_same_bytes(gpt):
    size = SEQUENCE * HIDDEN * ITEM
    found = traffic(gpt.works(TP_SP)[1:3])
    assert found == {
        (kind, phase, size): 2
        for kind in ("reduce_scatter", "all_gather")
        for phase in ("forward", "backward")
    }


def test_gpt_layer_saves_what_megatron_counts(gpt):
    """Korthikanti et al. 2022, table 2, with fused attention, no dropout and float32.

    Of 16 sbh elements, 10 are inside regions and divided by tp; the rest (two norms' inputs and
    outputs) are whole without sequence parallelism. Attention also keeps a number per head and
    token, a norm two per token, and the residual adds nothing.
    """
    unit = SEQUENCE * HIDDEN * ITEM
    whole, tp, sp = (
        sum(w.saved_bytes.per_sample for w in gpt.works(split)[1:3])
        for split in (Split(), TP, TP_SP)
    )
    assert sp == pytest.approx(whole / 2)
    assert (2 * tp - whole) / unit == pytest.approx(4, abs=0.3)
    assert whole / unit == pytest.approx(16, abs=0.3)


def test_under_sequence_parallelism_a_gathered_tensor_is_whole_on_a_rank(gpt):
    size = SEQUENCE * HIDDEN * ITEM
    for work in gpt.works(Split(tp=4, sequence_parallel=True))[1:3]:
        assert work.peak_transient_bytes.per_sample >= size


def test_vocabulary_is_padded_and_does_not_limit_the_degree(profiles):
    target = f"zoo:gpt?layers=1&hidden={HIDDEN}&heads=4&vocab=257&seq={SEQUENCE}"
    strategies = Strategies(profiles(target))
    assert strategies.why_not(TP) is None
    tied = "network.transformer.wte.weight"
    assert strategies.elements(TP, tied) == 257 * HIDDEN / 2


def test_heads_limit_the_degree(gpt):
    assert gpt.why_not(Split(tp=4)) is None
    assert gpt.why_not(Split(tp=8)) == "tp=8 does not divide 4 attention heads"


def test_grouped_queries_limit_the_degree_and_send_fewer_keys(profiles):
    target = "zoo:llama?layers=1&hidden=64&heads=8&kv_heads=4&ffn=96&vocab=128&seq=32"
    strategies = Strategies(profiles(target))
    assert strategies.why_not(Split(tp=4)) is None
    assert strategies.why_not(Split(tp=8)) == "tp=8 does not divide 4 key and value heads"
    keys_and_values = 2 * 4 * 8 * SEQUENCE * ITEM
    assert traffic(strategies.works(Split(cp=2))) == {
        ("all_gather", "forward", keys_and_values): 1,
        ("reduce_scatter", "backward", keys_and_values): 1,
    }


def test_gathered_keys_are_kept_for_backward(gpt):
    """Each of two ranks keeps the other's half of keys and values beside its own half of all."""
    keys_and_values = 2 * SEQUENCE * HIDDEN * ITEM
    for block, work in zip(gpt.profile.blocks, gpt.works(Split(cp=2)), strict=True):
        attends = any(
            "scaled_dot" in op.target for op in gpt.profile.ops[block.first_op : block.stop_op]
        )
        extra = work.saved_bytes.per_sample - block.saved_bytes.per_sample / 2
        assert extra == pytest.approx(keys_and_values / 2 if attends else 0.0)


UNDIVIDED = {
    "moe": None,
    "vit": "cp=2 needs sequences of a multiple of 4, one has 17",
    "wavenet": "the model has no attention over a sequence to divide",
    "gpt": None,
    "llama": None,
    "bert": None,
    "transformer": None,
}


@pytest.mark.parametrize("name", UNDIVIDED)
def test_models_without_sequences_to_divide(name, profiles):
    assert Strategies(profiles(small_target(name))).why_not(Split(cp=2)) == UNDIVIDED[name]


@pytest.mark.parametrize("name", ["gpt", "llama", "bert", "transformer"])
def test_nothing_else_than_attention_mixes_positions(name, profiles):
    strategies = Strategies(profiles(small_target(name)))
    assert not strategies.context.whole
    assert all(found.kept for found in strategies.context.gathered.values())


def test_routing_gathers_tokens_and_results_of_experts(profiles):
    """The table of places is whole on each rank; the rows of the experts are divided."""
    strategies = Strategies(profiles(small_target("moe")))
    ops, found = strategies.profile.ops, strategies.context.gathered
    names = [short(ops[i].target) for i in found if not found[i].kept]
    assert names == ["scatter", "pad", "view"] * 2
    products = {op.index for op in ops if short(op.target) == "bmm" and op.parameters}
    assert len(products) == 4
    assert not products & strategies.context.whole


def test_context_ranks_send_their_heads_only(gpt):
    """With tp, the keys of half the heads go round; cp ranks hold half the sequence."""
    works = gpt.works(Split(tp=2, cp=2))[1:3]
    keys_and_values = 2 * SEQUENCE * HIDDEN * ITEM / 2
    sent = [i.size_bytes.per_sample for w in works for i in w.collectives if i.axis == "cp"]
    assert sent == [keys_and_values] * 2
    reduced = [i.size_bytes.per_sample for w in works for i in w.collectives if i.axis == "tp"]
    assert reduced == [SEQUENCE * HIDDEN * ITEM / 2] * 4


def test_token_types_stay_whole(profiles):
    strategies = Strategies(profiles(small_target("bert")))
    tables = {
        name.split(".")[-2]
        for op in strategies.tensor.embeddings
        for name in strategies.profile.ops[op].parameters
    }
    assert tables == {"word_embeddings"}


def test_bottlenecks_divide_their_first_two_convolutions(profiles):
    strategies = Strategies(profiles(small_target("resnet50")))
    tensor, profile = strategies.tensor, strategies.profile
    assert strategies.why_not(TP_SP) == "the model has no sequence to divide"
    assert strategies.why_not(Split(cp=2)) is not None
    columns = [op for op in sorted(tensor.columns) if "conv" in profile.ops[op].target]
    for column in columns:
        row = next(op for op in sorted(tensor.rows) if op > column)
        between = {short(profile.ops[op].target) for op in range(column + 1, row)}
        assert between <= {"batch_norm", "relu", "relu_", "max_pool2d", "add_"}
    row_weight = next(n for n in profile.ops[min(tensor.rows)].parameters)
    assert strategies.elements(TP, row_weight) == profile.parameters[row_weight][0] / 2


def test_a_skip_that_is_whole_is_not_joined_with_a_part(profiles):
    strategies = Strategies(profiles(small_target("unet")))
    tensor, profile = strategies.tensor, strategies.profile
    joins = [op for op in profile.ops if short(op.target) == "cat"]
    assert joins
    for op in joins:
        inside = {s in tensor.divided for s in strategies.products.inputs[op.index]}
        assert len(inside) == 1


def test_experts_are_divided_and_tokens_sent_to_them_and_back(profiles):
    """Two layers, four experts, 20 slots each (32 tokens x 2 choices x 1.25 / 4)."""
    strategies = Strategies(profiles(small_target("moe")))
    assert strategies.expert.experts == 4
    assert strategies.why_not(Split(ep=4)) is None
    assert strategies.why_not(Split(ep=3)) == "ep=3 does not divide 4 experts"
    weights = {name.split(".")[-1] for name in strategies.expert.parameters}
    assert weights == {"gate_up", "down"}
    size = 4 * 20 * HIDDEN * ITEM
    assert traffic(strategies.works(Split(ep=2))) == {
        ("all_to_all", "forward", size): 4,
        ("all_to_all", "backward", size): 4,
    }
    whole, half = strategies.works(Split())[2], strategies.works(Split(ep=2))[2]
    assert half.expert_parameter_bytes == whole.expert_parameter_bytes / 2
    assert whole.expert_parameter_bytes == 4 * 3 * HIDDEN * 96 * ITEM
    assert half.parameter_bytes == whole.parameter_bytes


def test_gate_and_up_of_a_split_matrix_limit_the_degree_by_half_its_columns(profiles):
    strategies = Strategies(profiles(small_target("moe")))
    assert (96, "inputs of a product") in strategies.tensor.limits


def test_no_experts_and_no_pairs_are_said(profiles, gpt):
    assert gpt.why_not(Split(ep=2)) == "the model has no experts"
    single = Strategies(profiles(trunk(layers=nn.Sequential(nn.Linear(16, 16), nn.LayerNorm(16)))))
    reason = single.why_not(TP)
    assert reason == "no pair of products can be divided over tensor parallel ranks"
    assert single.tensor.parameters == frozenset()


def test_a_loss_ends_the_parts_before_its_mean(profiles):
    def loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(output, target, reduction="none").mean()

    task = trunk(loss, layers=nn.Linear(16, 10), classes=10)
    strategies = Strategies(profiles(task))
    assert len(strategies.tensor.columns) == 1
    ended = [op for op in strategies.tensor.divided if "mean" in strategies.profile.ops[op].target]
    assert not ended
