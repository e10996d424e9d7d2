"""Llama: the decoder-only transformer with rotary positions and gated feed-forward layers."""

from __future__ import annotations

import torch

from autopar.tasks.task import Task
from autopar.tasks.zoo import data, hf
from autopar.tasks.zoo.common import (
    adamw,
    require_divides,
    require_positive,
    require_probability,
    token_loss,
)

ROPE_THETA = 10_000.0


def llama(
    *,
    layers: int = 32,
    hidden: int = 4096,
    heads: int = 32,
    kv_heads: int | None = None,
    ffn: int | None = None,
    vocab: int = 32000,
    seq: int = 4096,
    dropout: float = 0.0,
) -> Task:
    """A Llama 2; the defaults are its 6.74 G parameter ("7B") version.

    Args:
        layers: Decoder blocks.
        hidden: Width of the residual stream.
        heads: Attention heads; divides ``hidden``.
        kv_heads: Heads of keys and values; divides ``heads``; None for as many as ``heads``.
        ffn: Width of the feed-forward layer; None for 8/3 of ``hidden``, rounded up to a
            multiple of 256.
        vocab: Token ids.
        seq: Tokens in a sample.
        dropout: Probability of dropping an attention weight. 0 as published.
    """
    hf.require_transformers("llama")
    kv_heads = heads if kv_heads is None else kv_heads
    ffn = -(-8 * hidden // 768) * 256 if ffn is None else ffn
    require_positive(layers=layers, hidden=hidden, heads=heads, kv_heads=kv_heads, ffn=ffn)
    require_positive(vocab=vocab, seq=seq)
    require_divides("twice the heads", 2 * heads, "hidden", hidden)
    require_divides("kv_heads", kv_heads, "heads", heads)
    require_probability(dropout=dropout)

    def model() -> torch.nn.Module:
        network = hf.build(
            "LlamaForCausalLM",
            "LlamaConfig",
            num_hidden_layers=layers,
            hidden_size=hidden,
            num_attention_heads=heads,
            num_key_value_heads=kv_heads,
            intermediate_size=ffn,
            vocab_size=vocab,
            max_position_embeddings=seq,
            attention_dropout=dropout,
        )
        network.model.rotary_emb = hf.Rotary(hidden // heads, ROPE_THETA)
        return hf.Logits(network, use_cache=False)

    def batch(n: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        ids = data.sequences(n, seq + 1, 0, vocab, generator)
        return ids[:, :-1].contiguous(), ids[:, 1:].contiguous()

    return Task(name="llama", model=model, batch=batch, loss=token_loss, optimizer=adamw)
