"""GPT: the decoder-only transformer of GPT-2 and GPT-3."""

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


def gpt(
    *,
    layers: int = 12,
    hidden: int = 768,
    heads: int = 12,
    ffn: int | None = None,
    vocab: int = 50257,
    seq: int = 1024,
    dropout: float = 0.0,
) -> Task:
    """A GPT-2 with tied embeddings; the defaults are its 124 M parameter version.

    GPT-3 is ``layers=96&hidden=12288&heads=96&seq=2048``; any size up to 1 T can be named.

    Args:
        layers: Decoder blocks.
        hidden: Width of the residual stream.
        heads: Attention heads; divides ``hidden``.
        ffn: Width of the feed-forward layer; None for four times ``hidden``.
        vocab: Token ids.
        seq: Tokens in a sample, and learned positions.
        dropout: Probability everywhere. 0 rather than the published 0.1, so that a parallel run
            can be compared exactly with a serial one.
    """
    hf.require_transformers("gpt")
    ffn = 4 * hidden if ffn is None else ffn
    require_positive(layers=layers, hidden=hidden, heads=heads, ffn=ffn, vocab=vocab, seq=seq)
    require_divides("heads", heads, "hidden", hidden)
    require_probability(dropout=dropout)

    def model() -> torch.nn.Module:
        network = hf.build(
            "GPT2LMHeadModel",
            "GPT2Config",
            n_layer=layers,
            n_embd=hidden,
            n_head=heads,
            n_inner=ffn,
            vocab_size=vocab,
            n_positions=seq,
            resid_pdrop=dropout,
            embd_pdrop=dropout,
            attn_pdrop=dropout,
            # The same function as GPT-2's "gelu_new", in one operation instead of eight.
            activation_function="gelu_pytorch_tanh",
            bos_token_id=0,
            eos_token_id=0,
        )
        return hf.Logits(network, use_cache=False)

    def batch(n: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        ids = data.sequences(n, seq + 1, 0, vocab, generator)
        return ids[:, :-1].contiguous(), ids[:, 1:].contiguous()

    return Task(name="gpt", model=model, batch=batch, loss=token_loss, optimizer=adamw)
