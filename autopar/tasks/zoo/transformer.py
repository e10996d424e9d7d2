"""The encoder-decoder transformer, as BART."""

from __future__ import annotations

import torch
from torch import nn

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

START = 1
"""First input of the decoder; 0 is padding."""
FIRST_WORD = 2


def transformer(
    *,
    layers: int = 6,
    hidden: int = 768,
    heads: int = 12,
    ffn: int | None = None,
    vocab: int = 50265,
    seq: int = 1024,
    target_seq: int | None = None,
    dropout: float = 0.0,
) -> Task:
    """A BART; the defaults are its 139 M parameter base version.

    The task is to repeat the source in reverse order; sources are padded, so the encoder's and
    the cross attention's masks matter.

    Args:
        layers: Encoder blocks, and as many decoder blocks.
        hidden: Width of the residual stream.
        heads: Attention heads; divides ``hidden``.
        ffn: Width of the feed-forward layers; None for four times ``hidden``.
        vocab: Token ids; at least 3.
        seq: Tokens of a source, padding included.
        target_seq: Tokens of a target; None for as many as ``seq``.
        dropout: Probability everywhere. 0 rather than the published 0.1, so that a parallel run
            can be compared exactly with a serial one.
    """
    hf.require_transformers("transformer")
    ffn = 4 * hidden if ffn is None else ffn
    target_length = seq if target_seq is None else target_seq
    require_positive(layers=layers, hidden=hidden, heads=heads, ffn=ffn, seq=seq)
    require_positive(target_seq=target_length)
    require_at_least(3, vocab=vocab)
    require_divides("heads", heads, "hidden", hidden)
    require_probability(dropout=dropout)

    def model() -> nn.Module:
        return _bart(
            layers=layers,
            hidden=hidden,
            heads=heads,
            ffn=ffn,
            vocab=vocab,
            positions=max(seq, target_length),
            dropout=dropout,
        )

    def batch(n: int, generator: torch.Generator) -> tuple[object, torch.Tensor]:
        return _reversal_batch(n, seq, target_length, vocab, generator)

    return Task(name="transformer", model=model, batch=batch, loss=token_loss, optimizer=adamw)


def _bart(
    *, layers: int, hidden: int, heads: int, ffn: int, vocab: int, positions: int, dropout: float
) -> nn.Module:
    network = hf.build(
        "BartForConditionalGeneration",
        "BartConfig",
        encoder_layers=layers,
        decoder_layers=layers,
        d_model=hidden,
        encoder_attention_heads=heads,
        decoder_attention_heads=heads,
        encoder_ffn_dim=ffn,
        decoder_ffn_dim=ffn,
        vocab_size=vocab,
        max_position_embeddings=positions,
        dropout=dropout,
        attention_dropout=dropout,
        activation_dropout=0.0,
        # 0.02 at the published width; narrow encoders would hardly be heard otherwise.
        init_std=0.02 * (768 / hidden) ** 0.5,
        pad_token_id=0,
        bos_token_id=START,
        eos_token_id=START,
        decoder_start_token_id=START,
        forced_eos_token_id=None,
    )
    return EncoderDecoder(network)


class EncoderDecoder(nn.Module):
    """BART with plain tensors as inputs and output.

    Args:
        network: A ``BartForConditionalGeneration``.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(
        self, source: torch.Tensor, source_mask: torch.Tensor, decoder_input: torch.Tensor
    ) -> torch.Tensor:
        """Logits, ``[n, target_seq, vocab]``.

        Args:
            source: Tokens to read, ``int64[n, seq]``.
            source_mask: 1 for a token and 0 for padding, ``int64[n, seq]``.
            decoder_input: The target, one token late, ``int64[n, target_seq]``.
        """
        output = self.network(
            source,
            attention_mask=hf.key_mask(source_mask),
            decoder_input_ids=decoder_input,
            use_cache=False,
        )
        logits: torch.Tensor = output.logits
        return logits


def _reversal_batch(
    n: int, seq: int, target_seq: int, vocab: int, generator: torch.Generator
) -> tuple[tuple[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]:
    words = data.sequences(n, max(seq, target_seq), FIRST_WORD, vocab, generator)
    mask = data.padding(n, seq, generator)
    target = words[:, :target_seq].flip(1)
    start = torch.full((n, 1), START)
    decoder_input = torch.cat((start, target[:, :-1]), dim=1)
    return (words[:, :seq] * mask, mask, decoder_input), target
