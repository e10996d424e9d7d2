"""The transformer of a published row: as stated, completed, or guessed from its name."""

from __future__ import annotations

import re
from dataclasses import replace

from autopar.validation.rows.frameworks import Framework
from autopar.validation.rows.shapes import (
    BIGSCIENCE_VOCAB,
    PAD,
    UNPRINTED_LAYERS,
    Shape,
    gpt,
    is_gated,
    known_shape,
    shape_of_size,
    size_in_name,
)
from autopar.validation.rows.table import Entry, UnpriceableError

_OTHER_NETWORKS = re.compile(
    r"resn[ex]|efficientnet|mobilenet|densenet|inception|\bvgg|u-?net\b|dlrm|wavenet|waveglow|tacotron"
)


def shape_of(entry: Entry, framework: Framework, notes: list[str]) -> Shape:
    """The shape, and what was filled in added to ``notes``.

    Raises:
        UnpriceableError: It is neither stated nor known.
    """
    model = entry.text("model")
    known = known_shape(model)
    hidden, layers = entry.positive("hidden"), entry.positive("layers")
    if hidden and not layers:
        layers = UNPRINTED_LAYERS.get((model, round(hidden)))
        if layers:
            notes.append(f"{layers} layers: the printed TFLOP/s solved for the layer count")
    if hidden and layers:
        return _stated(entry, framework, round(layers), round(hidden), known)
    if known is not None:
        notes.append(f"shape: {known.source}")
        return known
    size = entry.positive("params_b") or size_in_name(model)
    if _OTHER_NETWORKS.search(model.lower()):
        raise UnpriceableError(
            f"'{model}' is no transformer, which is all that rows are priced as: profile its "
            "graph and plan it instead"
        )
    if size is None:
        raise UnpriceableError(f"shape of '{model}' is neither stated nor known")
    guess = shape_of_size(size)
    notes.append(f"shape: {guess.source}")
    return guess


def _stated(
    entry: Entry, framework: Framework, layers: int, hidden: int, known: Shape | None
) -> Shape:
    """The shape the row states, completed from the known model of the same width."""
    same = known if known is not None and known.hidden == hidden else None
    heads = entry.positive("heads") or (same.heads if same else framework.heads(hidden))
    ffn = entry.positive("ffn") or (same.ffn if same else 4 * hidden)
    vocab = entry.positive("vocab") or (same.vocab if same else _default_vocab(entry))
    stated = gpt(layers, hidden, max(1, round(heads)), vocab=round(vocab), ffn=round(ffn))
    return replace(
        same or stated,
        layers=layers,
        hidden=hidden,
        heads=stated.heads,
        kv_heads=round(entry.positive("kv_heads") or (same.kv_heads if same else stated.heads)),
        head_dim=same.head_dim if same and same.heads == stated.heads else stated.head_dim,
        ffn=stated.ffn,
        vocab=stated.vocab,
        gated=is_gated(entry.text("model")),
        source="stated by the row",
    )


def _default_vocab(entry: Entry) -> int:
    if "vocab ~250k" in entry.text("notes") or "bigscience" in entry.text("source"):
        return BIGSCIENCE_VOCAB if "tr11" in entry.text("source") else 51200
    return -(-50257 // PAD) * PAD
