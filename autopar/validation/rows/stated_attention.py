"""Whether a published run's attention is one kernel: as stated, else as its framework does."""

from __future__ import annotations

import re

from autopar.calibration.table import architecture
from autopar.validation.rows.frameworks import OTHER, Framework
from autopar.validation.rows.platform import Platform
from autopar.validation.rows.table import Entry

UNFUSED = re.compile(
    r"\b(?:no|not|without) (?:flash|fused)[ -]?attention|unfused attention"
    r"|attention (?:is )?(?:not fused|unfused|written out)"
)
FUSED = re.compile(r"(?:flash|fused)[ -]?attention|attention (?:is )?fused|transformer engine")
WITHOUT_KERNEL = frozenset({"volta"})
"""Architectures that FlashAttention's kernels do not run on (its README: Turing or newer)."""


def fuses_attention(
    entry: Entry, framework: Framework, platform: Platform, notes: list[str]
) -> bool:
    """Whether scores stay in the kernel, and what was filled in added to ``notes``.

    Args:
        entry: The row as printed; its framework and notes columns may say so.
        framework: Its framework.
        platform: Its device.
        notes: What was filled in.
    """
    text = f"{entry.text('framework')}; {entry.text('notes')}".lower()
    if UNFUSED.search(text):
        return False
    if FUSED.search(text):
        return True
    if framework is OTHER and architecture(platform.device) in WITHOUT_KERNEL:
        notes.append("attention that is not fused assumed: FlashAttention needs Turing or newer")
        return False
    return framework.fused_attention
