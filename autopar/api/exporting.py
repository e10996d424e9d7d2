"""export(): a plan in the words of another tool."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from autopar.core.io import write_text_atomic

if TYPE_CHECKING:
    from autopar.exporters.base import Exported
    from autopar.plans import Plan
    from autopar.results import SearchResult


def export(
    plan: Plan | SearchResult | Path | str,
    to: str,
    *,
    out: Path | str | None = None,
    pick: int = 0,
    nnodes: int | None = None,
) -> Exported:
    """Write a plan for torchrun, Slurm, torchtitan, Megatron-LM, DeepSpeed, accelerate, ...

    Args:
        plan: A plan, a search result, or a file with either.
        to: Name of the target, as ``autopar catalog exports`` lists them.
        out: File to write the text to, if any.
        pick: Plan number in a search result; ``csv`` writes all of them.
        nnodes: Hosts; by default those of the plan's catalogue cluster, else one.

    Returns:
        The text, where it states what of the plan, and what it does not state (``lossy``).

    Raises:
        InputError: The target or the file cannot be used, or ``out`` cannot be written.
    """
    from autopar.api.running import as_plan
    from autopar.exporters.base import export_plan, subject_of

    chosen, search = as_plan(plan, pick=pick)
    exported = export_plan(to, subject_of(chosen, search, nnodes))
    if out is not None:
        write_text_atomic(Path(out), exported.text)
    return exported
