"""report(): the page of a profile, a search, a run, a benchmark or a comparison."""

from __future__ import annotations

from pathlib import Path

from autopar.core.errors import GateError


def report(
    path: Path | str,
    other: Path | str | None = None,
    *,
    out: Path | str | None = None,
    format: str = "html",
    fail_if: str | None = None,
) -> Path:
    """Write a report of one result file or run folder, or a comparison of two.

    Args:
        path: A file written by another command, or a run folder.
        other: The second file of a comparison.
        out: File to write; under ``reports/`` by default.
        format: ``html``, ``md``, ``json`` or ``csv``.
        fail_if: Gate such as ``step_time>+5%`` (against ``other``) or ``step_time_rel>0.15``.

    Raises:
        InputError: A file or the expression cannot be read.
        GateError: The gate's condition holds; the report is written first.
    """
    from autopar.reporting import evaluate_gate, load_any, write_report

    written = write_report(
        Path(path),
        other=Path(other) if other is not None else None,
        out=Path(out) if out is not None else None,
        format=format,
    )
    if fail_if is not None:
        document = load_any(Path(path))
        baseline = load_any(Path(other)) if other is not None else None
        failed, text = evaluate_gate(fail_if, document, baseline)
        if failed:
            raise GateError(f"gate '{fail_if}' failed: {text}", hint=f"see {written}")
    return written
