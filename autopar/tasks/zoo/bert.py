"""BERT: the bidirectional encoder, trained on masked words and on sentence order."""

from __future__ import annotations

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
)

MASK, CLS, FIRST_WORD = 1, 2, 3
"""Ids after the padding id 0."""
IGNORED = -100
"""Label of a token that is not to be predicted."""


def bert(
    *,
    layers: int = 12,
    hidden: int = 768,
    heads: int = 12,
    ffn: int | None = None,
    vocab: int = 30522,
    seq: int = 512,
    dropout: float = 0.0,
) -> Task:
    """A BERT for pre-training; the defaults are its 110 M parameter base version.

    Inputs are a dict with a padding mask; the output and the target are pairs, because the model
    predicts masked words and whether the second half of a sample continues the first.

    Args:
        layers: Encoder blocks.
        hidden: Width of the residual stream.
        heads: Attention heads; divides ``hidden``.
        ffn: Width of the feed-forward layer; None for four times ``hidden``.
        vocab: Token ids; at least 4.
        seq: Tokens in a sample, and learned positions; at least 4.
        dropout: Probability everywhere. 0 rather than the published 0.1, so that a parallel run
            can be compared exactly with a serial one.
    """
    hf.require_transformers("bert")
    ffn = 4 * hidden if ffn is None else ffn
    require_positive(layers=layers, hidden=hidden, heads=heads, ffn=ffn)
    require_at_least(4, vocab=vocab, seq=seq)
    require_divides("heads", heads, "hidden", hidden)
    require_probability(dropout=dropout)
    masked = max(1, round(0.15 * seq))

    def model() -> nn.Module:
        network = hf.build(
            "BertForPreTraining",
            "BertConfig",
            num_hidden_layers=layers,
            hidden_size=hidden,
            num_attention_heads=heads,
            intermediate_size=ffn,
            vocab_size=vocab,
            max_position_embeddings=seq,
            hidden_dropout_prob=dropout,
            attention_probs_dropout_prob=dropout,
        )
        hf.drop_buffers(network.bert.embeddings, ("position_ids", "token_type_ids"))
        return BertHeads(network)

    def batch(n: int, generator: torch.Generator) -> tuple[object, object]:
        return _pretraining_batch(n, seq, vocab, masked, generator)

    def loss(
        output: tuple[torch.Tensor, torch.Tensor], target: tuple[torch.Tensor, torch.Tensor]
    ) -> torch.Tensor:
        return _pretraining_loss(output, target, masked)

    return Task(name="bert", model=model, batch=batch, loss=loss, optimizer=adamw)


class BertHeads(nn.Module):
    """BERT with plain tensors as outputs.

    Args:
        network: A ``BertForPreTraining``.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        token_type_ids: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Scores of words ``[n, seq, vocab]`` and of sentence order ``[n, 2]``.

        Args:
            input_ids: Words, ``int64[n, seq]``.
            attention_mask: 1 for a word and 0 for padding, ``int64[n, seq]``.
            token_type_ids: 0 in the first sentence and 1 in the second, ``int64[n, seq]``.
        """
        positions = torch.arange(input_ids.shape[1], device=input_ids.device).unsqueeze(0)
        output = self.network(
            input_ids,
            attention_mask=hf.key_mask(attention_mask),
            token_type_ids=token_type_ids,
            position_ids=positions,
        )
        return output.prediction_logits, output.seq_relationship_logits


def _pretraining_loss(
    output: tuple[torch.Tensor, torch.Tensor],
    target: tuple[torch.Tensor, torch.Tensor],
    masked: int,
) -> torch.Tensor:
    """Mean over masked words plus mean over samples, in nats.

    Every sample has the same number of masked words, so dividing by that number instead of
    counting keeps the mean over equal microbatches equal to the mean over the batch.
    """
    (words, order), (word_labels, order_labels) = output, target
    summed = functional.cross_entropy(
        words.flatten(0, 1), word_labels.flatten(), ignore_index=IGNORED, reduction="sum"
    )
    return summed / (words.shape[0] * masked) + functional.cross_entropy(order, order_labels)


def _pretraining_batch(
    n: int, seq: int, vocab: int, masked: int, generator: torch.Generator
) -> tuple[dict[str, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]:
    first = data.sequences(n, seq, FIRST_WORD, vocab, generator)
    other = data.sequences(n, seq, FIRST_WORD, vocab, generator)
    second = (torch.arange(seq) >= seq // 2).expand(n, seq)
    order = torch.randint(2, (n,), generator=generator)
    words = torch.where(second & order.bool()[:, None], other, first)
    words[:, 0] = CLS
    mask = data.padding(n, seq, generator)
    lottery = torch.rand(n, seq, generator=generator)
    lottery = torch.where(mask.bool(), lottery, -1.0)
    lottery[:, 0] = -1.0
    chosen = torch.zeros(n, seq, dtype=torch.bool)
    chosen.scatter_(1, lottery.topk(masked, dim=1).indices, True)
    labels = torch.where(chosen, words, IGNORED)
    words = torch.where(chosen, MASK, words) * mask
    inputs = {
        "input_ids": words,
        "attention_mask": mask,
        "token_type_ids": second.long() * mask,
    }
    return inputs, (labels, order)
