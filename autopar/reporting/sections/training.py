"""Did it learn the same thing: losses, and the comparison with one process."""

from __future__ import annotations

from autopar.reporting.figures.losses import losses_figure, losses_table
from autopar.reporting.model import Chart, Section
from autopar.reporting.sections.subject import Subject
from autopar.reporting.table import Column, Table
from autopar.results import VerifyResult


def training_section(subject: Subject) -> Section | None:
    """Losses and the verify figures."""
    record = subject.record
    if record is None or not (record.losses or record.verify):
        return None
    parts: list[Chart | Table] = []
    if record.verify:
        parts.append(verify_table(record.verify))
    if record.losses:
        first, last = record.losses[0], record.losses[-1]
        series = (("loss", record.losses),)
        parts.append(
            Chart(
                id="losses",
                title=f"Loss goes from {first:.4g} to {last:.4g} in {len(record.losses)} steps",
                how_to_read="Mean loss over the global batch at each step, warm-up included.",
                table=losses_table(series),
                figure=losses_figure(series),
            )
        )
    return Section(id="training", title="Training", lead=_lead(record.verify), parts=tuple(parts))


def _lead(verify: VerifyResult | None) -> str:
    if verify is None:
        return "This run was not compared with one process; --verify does that."
    if verify.passed and verify.note:
        return f"One step of the plan does what its sync mode promises. {verify.note}."
    if verify.passed:
        return "One step of the plan equals one step of the eager model in one process."
    return (
        "One step of the plan differs from the eager model in one process: do not trust the run."
    )


def verify_table(verify: VerifyResult) -> Table:
    """Relative differences from one process, against the tolerance."""
    gradients = verify.tolerance if verify.grad_tolerance is None else verify.grad_tolerance
    named = (
        ("loss", verify.loss_rel, verify.tolerance),
        ("gradients", verify.grad_rel, gradients),
        ("weights after the step", verify.weight_rel, verify.tolerance),
        ("buffers", verify.buffer_rel, verify.tolerance),
    )
    rows = tuple(
        (name, value, allowed, "within" if value <= allowed else "OUTSIDE")
        for name, value, allowed in named
    )
    return Table(
        id="verify-data",
        caption="Relative difference from the eager model in one process, after one step",
        columns=(
            Column("what", "what"),
            Column("relative", "relative difference", "number"),
            Column("tolerance", "tolerance", "number"),
            Column("verdict", "verdict"),
        ),
        rows=rows,
    )
