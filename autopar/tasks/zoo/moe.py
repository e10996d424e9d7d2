"""Mixture of experts, as Mixtral, with a dispatch of static shapes."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional

from autopar.tasks.task import Task
from autopar.tasks.zoo import data, hf
from autopar.tasks.zoo.common import (
    adamw,
    require_at_least,
    require_divides,
    require_positive,
    require_probability,
    token_loss,
)

ROPE_THETA = 1_000_000.0
INITIAL_STD = 0.02


def moe(  # noqa: PLR0913 (each argument is an option users can set)
    *,
    layers: int = 32,
    hidden: int = 4096,
    heads: int = 32,
    kv_heads: int | None = None,
    ffn: int | None = None,
    experts: int = 8,
    top_k: int = 2,
    capacity: float = 1.25,
    vocab: int = 32000,
    seq: int = 4096,
    dropout: float = 0.0,
) -> Task:
    """A Mixtral; the defaults are its 46.7 G parameter ("8x7B") version.

    The class of ``transformers`` visits experts in a loop whose shapes depend on the data. Here
    an expert takes a fixed number of tokens of each sample and the rest skip it; as the limit
    is per sample, a result does not depend on how a batch is cut. There is no balancing loss,
    because it is not a mean over samples.

    Args:
        layers: Decoder blocks.
        hidden: Width of the residual stream.
        heads: Attention heads; divides ``hidden``.
        kv_heads: Heads of keys and values; divides ``heads``; None for a quarter of ``heads``.
        ffn: Width of an expert; None for 3.5 times ``hidden``.
        experts: Experts in a block.
        top_k: Experts that a token chooses.
        capacity: Places of an expert, in multiples of what an even load would fill.
        vocab: Token ids.
        seq: Tokens in a sample.
        dropout: Probability of dropping an attention weight. 0 as published.
    """
    hf.require_transformers("moe")
    kv_heads = max(1, heads // 4) if kv_heads is None else kv_heads
    ffn = 7 * hidden // 2 if ffn is None else ffn
    require_positive(layers=layers, hidden=hidden, heads=heads, kv_heads=kv_heads, ffn=ffn)
    require_positive(experts=experts, top_k=top_k, capacity=capacity, vocab=vocab, seq=seq)
    require_at_least(top_k, experts=experts)
    require_divides("twice the heads", 2 * heads, "hidden", hidden)
    require_divides("kv_heads", kv_heads, "heads", heads)
    require_probability(dropout=dropout)
    places = min(seq, math.ceil(capacity * top_k * seq / experts))

    def model() -> nn.Module:
        return _mixtral(
            lambda: Experts(hidden, ffn, experts, top_k, places),
            layers=layers,
            hidden=hidden,
            heads=heads,
            kv_heads=kv_heads,
            vocab=vocab,
            seq=seq,
            dropout=dropout,
        )

    def batch(n: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        ids = data.sequences(n, seq + 1, 0, vocab, generator)
        return ids[:, :-1].contiguous(), ids[:, 1:].contiguous()

    return Task(name="moe", model=model, batch=batch, loss=token_loss, optimizer=adamw)


def _mixtral(
    experts: Callable[[], nn.Module],
    *,
    layers: int,
    hidden: int,
    heads: int,
    kv_heads: int,
    vocab: int,
    seq: int,
    dropout: float,
) -> nn.Module:
    """The model of ``transformers`` with other experts in every block."""
    network = hf.build(
        "MixtralForCausalLM",
        "MixtralConfig",
        num_hidden_layers=layers,
        hidden_size=hidden,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        # The experts of transformers are thrown away: make them as small as can be.
        intermediate_size=1,
        num_local_experts=1,
        num_experts_per_tok=1,
        vocab_size=vocab,
        max_position_embeddings=seq,
        attention_dropout=dropout,
        sliding_window=None,
    )
    network.model.rotary_emb = hf.Rotary(hidden // heads, ROPE_THETA)
    for layer in network.model.layers:
        layer.mlp = experts()
    return hf.Logits(network, use_cache=False)


class Experts(nn.Module):
    """A router and gated feed-forward experts with a fixed number of places.

    Args:
        hidden: Width of the residual stream.
        ffn: Width of an expert.
        experts: Experts.
        top_k: Experts that a token chooses.
        places: Tokens of one sample that an expert takes.
    """

    def __init__(self, hidden: int, ffn: int, experts: int, top_k: int, places: int) -> None:
        super().__init__()
        self.top_k = top_k
        self.places = places
        self.router = nn.Linear(hidden, experts, bias=False)
        self.gate_up = nn.Parameter(torch.empty(experts, hidden, 2 * ffn))
        self.down = nn.Parameter(torch.empty(experts, ffn, hidden))
        for weight in (self.router.weight, self.gate_up, self.down):
            nn.init.normal_(weight, std=INITIAL_STD)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The weighted sum of the chosen experts, ``[n, tokens, hidden]``.

        Args:
            x: Hidden states, ``[n, tokens, hidden]``.
        """
        n, tokens, hidden = x.shape
        weight, chosen = torch.topk(functional.softmax(self.router(x), dim=-1), self.top_k)
        weight = weight / weight.sum(dim=-1, keepdim=True)
        slot = self._slots(chosen.flatten(1))
        spots = self.router.out_features * self.places
        # Which (token, choice) sits in each place; empty places read a row of zeros.
        order = torch.arange(tokens * self.top_k, device=x.device).expand(n, -1)
        empty = torch.full((n, spots + 1), tokens * self.top_k, device=x.device)
        seated = empty.scatter(1, slot, order)[:, :spots] // self.top_k
        padded = functional.pad(x, (0, 0, 0, 1))
        inputs = padded.gather(1, seated.unsqueeze(-1).expand(-1, -1, hidden))
        outputs = functional.pad(self._run(inputs), (0, 0, 0, 1))
        returned = outputs.gather(1, slot.unsqueeze(-1).expand(-1, -1, hidden))
        returned = returned.view(n, tokens, self.top_k, hidden)
        return (returned * weight.unsqueeze(-1)).sum(dim=2)

    def _slots(self, chosen: torch.Tensor) -> torch.Tensor:
        """The place of each choice, first come first served within the sample.

        Args:
            chosen: Experts, ``int64[n, tokens * top_k]``.

        Returns:
            ``expert * places + rank``, or ``experts * places`` for a choice without a place.
        """
        experts = self.router.out_features
        one_hot = (chosen.unsqueeze(-1) == torch.arange(experts, device=chosen.device)).long()
        rank = (one_hot.cumsum(dim=1) * one_hot).sum(dim=-1) - 1
        place = chosen * self.places + rank
        return torch.where(rank < self.places, place, experts * self.places)

    def _run(self, inputs: torch.Tensor) -> torch.Tensor:
        """Run every expert on its places, ``[n, experts * places, hidden]`` to the same."""
        n, spots, hidden = inputs.shape
        experts = self.router.out_features
        grouped = inputs.view(n, experts, self.places, hidden).transpose(0, 1)
        grouped = grouped.reshape(experts, n * self.places, hidden)
        gate, up = torch.bmm(grouped, self.gate_up).chunk(2, dim=-1)
        mixed = torch.bmm(functional.silu(gate) * up, self.down)
        ungrouped = mixed.view(experts, n, self.places, hidden).transpose(0, 1)
        return ungrouped.reshape(n, spots, hidden)
