"""Which tokens of a published run are computed: padding dropped, unmasked ones without a head."""

from __future__ import annotations

import re

from autopar.validation.rows.frameworks import Framework
from autopar.validation.rows.table import Entry

PADDED_LENGTH = 512
"""Least length of BERT's pretraining at which its corpus leaves much of a sequence empty."""
PADDED_SHARE = 0.5
"""Padding in sequences of 512 of BERT's Wikipedia (Krell et al. 2021, arXiv 2107.02027)."""
BIN_WIDTH = 64
"""Tokens of a bin of like sequences (NVIDIA's LDDL), all padded to the longest of them."""
MASKED_SHARE = 0.16
"""Tokens that BERT predicts: 20 of 128, 80 of 512 (Devlin et al. 2018, ``max_predictions``)."""
LONGEST_MASKED = 512


def trained_length(entry: Entry, framework: Framework, notes: list[str]) -> int:
    """Tokens of a sequence that are computed, and what was filled in added to ``notes``.

    Binned sequences keep their own tokens and half a bin of padding.

    Raises:
        UnpriceableError: The row states no length.
    """
    seq = entry.whole("seq")
    pretrained = _is_masked(entry) and not _answers_questions(entry)
    if not (framework.bins_sequences and pretrained and seq >= PADDED_LENGTH):
        return seq
    notes.append(f"half of {seq} tokens are padding, binned by the loader")
    return round(seq * (1 - PADDED_SHARE)) + BIN_WIDTH // 2


def head_share(entry: Entry, seq: int) -> float:
    """Part of the tokens that reach the vocabulary projection.

    Masked language models project the masked tokens only; fine-tuning for answers none.
    """
    if not _is_masked(entry):
        return 1.0
    if _answers_questions(entry):
        return 0.0
    return MASKED_SHARE if seq <= LONGEST_MASKED else 1.0


def _is_masked(entry: Entry) -> bool:
    return bool(re.search("bert", entry.text("model"), re.IGNORECASE))


def _answers_questions(entry: Entry) -> bool:
    return "SQuAD" in entry.text("notes")
