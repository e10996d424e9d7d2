"""A language model of characters on real English text that ships with Python."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from functools import lru_cache

import torch

from autopar.core.errors import EnvironmentUnableError
from autopar.tasks.task import Task
from autopar.tasks.zoo.common import require_positive
from autopar.tasks.zoo.gpt import gpt

VOCAB = 96
"""Line feed and the 95 printable characters of ASCII."""
TARGET_LOSS = 2.4
"""Nats per character; all characters alike cost ln 96 = 4.6, their frequencies about 3.1.

The small version needs about 180 steps of 32 samples."""
PLAIN = str.maketrans(
    {"\N{LEFT DOUBLE QUOTATION MARK}": '"', "\N{RIGHT DOUBLE QUOTATION MARK}": '"'}
    | {"\N{LEFT SINGLE QUOTATION MARK}": "'", "\N{RIGHT SINGLE QUOTATION MARK}": "'"}
    | {"\N{EN DASH}": "-", "\N{EM DASH}": "-", "\N{HORIZONTAL ELLIPSIS}": "..."}
)


def chars(
    *, layers: int = 6, hidden: int = 256, heads: int = 8, seq: int = 128, dropout: float = 0.0
) -> Task:
    """A GPT-2 that reads the help texts of Python's own language reference, byte by byte.

    The text is that of the running Python (``pydoc_data.topics``, about 460 thousand characters);
    another Python version has a slightly different one. Samples are windows at random places.

    Args:
        layers: Decoder blocks.
        hidden: Width of the residual stream.
        heads: Attention heads; divides ``hidden``.
        seq: Characters in a sample.
        dropout: Probability everywhere.
    """
    require_positive(seq=seq)
    base = gpt(layers=layers, hidden=hidden, heads=heads, vocab=VOCAB, seq=seq, dropout=dropout)

    def batch(n: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        ids = windows(n, seq + 1, generator)
        return ids[:, :-1].contiguous(), ids[:, 1:].contiguous()

    return replace(base, name="chars", batch=batch, optimizer=optimizer, target_loss=TARGET_LOSS)


def optimizer(params: Iterable[torch.nn.Parameter]) -> torch.optim.Optimizer:
    """AdamW with the larger step that small transformers take."""
    return torch.optim.AdamW(params, lr=2e-3, betas=(0.9, 0.95), weight_decay=0.1)


def windows(n: int, length: int, generator: torch.Generator) -> torch.Tensor:
    """Pieces of the text at random places.

    Args:
        n: Samples.
        length: Characters in a piece.
        generator: Source of randomness.

    Returns:
        Ids, ``int64[n, length]``.

    Raises:
        EnvironmentUnableError: This Python came without its help texts, or they are shorter.
    """
    text = text_ids()
    if length >= len(text):
        raise EnvironmentUnableError(
            f"zoo:chars with seq={length - 1}: the text has {len(text)} characters",
            hint="use a smaller seq",
        )
    start = torch.randint(len(text) - length, (n, 1), generator=generator)
    return text[start + torch.arange(length)]


@lru_cache(maxsize=1)
def text_ids() -> torch.Tensor:
    """The whole text as ids, ``int64[characters]``: 0 for a line feed, else code minus 31.

    Raises:
        EnvironmentUnableError: This Python came without its help texts.
    """
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise EnvironmentUnableError(
            "zoo:chars reads pydoc_data.topics, which this Python came without",
            hint="install the full standard library of Python, or use zoo:shapes",
        ) from error
    text = "\n".join(topics[name] for name in sorted(topics)).translate(PLAIN)
    codes = torch.frombuffer(bytearray(text.encode("ascii", "ignore")), dtype=torch.uint8).long()
    kept = codes[(codes == 10) | ((codes >= 32) & (codes < 127))]
    return torch.where(kept == 10, 0, kept - 31)
