"""The page of a GraphProfile."""

from __future__ import annotations

from autopar.cluster import Cluster
from autopar.core.units import format_bytes, format_count, format_seconds
from autopar.graph import GraphProfile
from autopar.reporting.figures.blocks import block_rows, block_table
from autopar.reporting.figures.curves import curves_figure, curves_table
from autopar.reporting.figures.op_types import op_types_figure, op_types_table
from autopar.reporting.graph_view import from_profile
from autopar.reporting.model import Chart, Download, Fact, Page, Section
from autopar.reporting.sections.appendix import appendix_section
from autopar.reporting.sections.model import block_charts, graph_chart, model_lead
from autopar.reporting.table import Column, Table
from autopar.reporting.text import clean, moment, percent, plural, quantity


def profile_page(profile: GraphProfile, cluster: Cluster | None = None) -> Page:
    """Totals, cost by block and by operator, drawing, measured curves, what is not counted."""
    samples = profile.batch
    rows = block_rows(profile, None, samples)
    optional = (
        Section(
            id="model",
            title="Where the work is",
            lead=model_lead(profile),
            parts=tuple(block_charts(profile, None, samples, cluster)),
        ),
        _operators(profile),
        Section(
            id="drawing",
            title="The graph",
            lead="Blocks are the units the planner cuts and places.",
            parts=(graph_chart(from_profile(profile, None, samples), None),),
        ),
        _curves(profile),
        _state(profile),
        _noise(profile),
        appendix_section(None, {"profile": profile.provenance}, cluster),
    )
    return Page(
        kind="profile",
        title=f"{format_count(profile.parameter_count)} parameters · {clean(profile.task, 60)} "
        "· profile · autopar",
        name=f"profile-{profile.task}",
        verdict=_verdict(profile),
        tone="plain",
        subject=_subject(profile),
        facts=_facts(profile),
        warnings=_warnings(profile),
        sections=tuple(section for section in optional if section),
        primary=block_table(rows, samples),
        downloads=(Download(name="profile.json", label="Profile", data=profile.to_dict()),),
    )


def _verdict(profile: GraphProfile) -> str:
    one = profile.forward_flop.at(1) + profile.backward_flop.at(1)
    saved = profile.saved_bytes.at(profile.batch)
    return (
        f"{clean(profile.task, 60)} has {format_count(profile.parameter_count)} parameters and "
        f"costs {quantity(one, 'FLOP')} per sample, forward and backward; a batch of "
        f"{profile.batch} keeps {format_bytes(saved)} for backward."
    )


def _subject(profile: GraphProfile) -> tuple[str, ...]:
    words = [clean(profile.target or profile.task), f"batch {profile.batch}"]
    words.append(f"device {clean(profile.device)}")
    if profile.provenance.get("created"):
        words.append(moment(profile.provenance["created"]))
    return tuple(words)


def _facts(profile: GraphProfile) -> tuple[Fact, ...]:
    n = profile.batch
    forward, backward = profile.forward_flop.at(n), profile.backward_flop.at(n)
    ratio = (
        f"{backward / forward:.2f} \N{MULTIPLICATION SIGN} forward"
        if forward
        else "no forward counted"
    )
    found = [
        Fact(
            label="Parameters",
            value=format_count(profile.parameter_count),
            note=format_bytes(profile.parameter_bytes),
        ),
        Fact(label="Forward", value=quantity(forward, "FLOP"), note=f"batch of {n}"),
        Fact(label="Backward", value=quantity(backward, "FLOP"), note=ratio),
        Fact(
            label="Kept for backward",
            value=format_bytes(profile.saved_bytes.at(n)),
            note=f"{format_bytes(profile.saved_bytes.at(1))} for one sample",
        ),
        Fact(
            label="Blocks",
            value=f"{len(profile.blocks)}",
            note=f"{profile.unique_blocks:,} different, {len(profile.ops):,} operators",
        ),
    ]
    if profile.measurement:
        m = profile.measurement
        found.append(
            Fact(
                label="Measured on",
                value=clean(m.device, 32),
                note=f"{plural(m.busy_ranks, 'busy rank')}, {plural(m.threads, 'thread')} each",
            )
        )
    return tuple(found)


def _warnings(profile: GraphProfile) -> tuple[str, ...]:
    names = [clean(target) for target in profile.uncounted]
    if not names:
        return ()
    shown = ", ".join(names[:4]) + (", …" if len(names) > 4 else "")
    return (
        f"FLOPs of {plural(len(names), 'kind')} of operator are not counted ({shown}); "
        "the reasons are under Operators",
    )


def _operators(profile: GraphProfile) -> Section | None:
    table = op_types_table(profile, profile.batch)
    if not table.rows:
        return None
    work = [float(row[2] or 0) + float(row[3] or 0) for row in table.rows]
    title = f"{plural(len(table.rows), 'kind')} of operator"
    if sum(work):
        title = f"{table.rows[0][0]} does {percent(work[0] / sum(work))} of the arithmetic"
    chart = Chart(
        id="operators-chart",
        title=title,
        how_to_read="Arithmetic of one batch by operator, forward and backward. Operators with "
        "little arithmetic can still take time: they move bytes, which the table shows.",
        table=table,
        figure=op_types_figure(table),
    )
    uncounted = Table(
        id="uncounted-data",
        caption="Operators whose FLOPs no formula counts",
        columns=(Column("op", "operator"), Column("reason", "reason")),
        rows=tuple((clean(op), clean(why, 300)) for op, why in profile.uncounted.items()),
    )
    parts = (chart, uncounted) if uncounted.rows else (chart,)
    return Section(id="operators", title="Operators", lead="", parts=parts)


def _curves(profile: GraphProfile) -> Section | None:
    if profile.measurement is None:
        return None
    table = curves_table(profile)
    if not table.rows:
        return None
    m = profile.measurement
    chart = Chart(
        id="curves-chart",
        title=f"{plural(len({row[0] for row in table.rows}), 'unique block')} measured, "
        f"repeats spread ±{percent(m.spread)}",
        how_to_read="Forward and backward seconds of one block divided by the microbatch size: "
        "falling lines gain from larger microbatches, flat ones are at their best already. The "
        "most expensive blocks are drawn, the table has all.",
        table=table,
        figure=curves_figure(table),
    )
    return Section(
        id="curves",
        title="Measured times",
        lead=f"On {clean(m.device)} with {plural(m.busy_ranks, 'rank')} busy at once, "
        f"{plural(m.threads, 'thread')} each.",
        parts=(chart,),
    )


def _state(profile: GraphProfile) -> Section:
    optimizer = profile.optimizer
    state = optimizer.state_bytes_per_parameter_byte * profile.parameter_bytes
    rows: list[tuple[str, str]] = [
        ("optimizer", clean(optimizer.name)),
        ("optimizer state", format_bytes(state)),
        ("parameters", format_bytes(profile.parameter_bytes)),
        ("gradients", format_bytes(profile.parameter_bytes)),
        ("buffers", format_bytes(profile.buffer_bytes)),
        ("inputs and target, per sample", format_bytes(profile.input_bytes)),
    ]
    if profile.measurement:
        m = profile.measurement
        rows += [
            ("optimizer step, measured", format_seconds(m.optimizer_s)),
            ("clearing gradients, measured", format_seconds(m.zero_grad_s)),
            ("resident before the model, measured", format_bytes(m.resident_bytes)),
        ]
    table = Table(
        id="state-data",
        caption="State of one full replica",
        columns=(Column("what", "what"), Column("amount", "amount")),
        rows=tuple(rows),
    )
    return Section(id="state", title="Optimizer and state", lead="", parts=(table,))


def _noise(profile: GraphProfile) -> Section | None:
    noise = profile.gradient_noise
    if noise is None:
        return None
    rows = tuple(
        (
            f"{point.step}",
            f"{point.gradient_squared:.3g}",
            f"{point.noise_trace:.3g}",
            f"{point.scale.value:.3g}" if point.scale else "lost in the noise",
            f"{point.scale.low:.3g} to {point.scale.high:.3g}" if point.scale else "",
        )
        for point in noise.points
    )
    table = Table(
        id="noise-data",
        caption="Gradient noise along a short training",
        columns=(
            Column("step", "steps done"),
            Column("gradient", "squared gradient norm"),
            Column("noise", "noise of one sample"),
            Column("scale", "noise scale, samples"),
            Column("range", "two standard errors"),
        ),
        rows=rows,
    )
    return Section(
        id="noise",
        title="Gradient noise",
        lead=f"The noise scale is {noise.words}: far larger global batches mostly spend more "
        "samples on the same progress (McCandlish et al. 2018, arXiv:1812.06162). From "
        f"{noise.repeats} gradients over {noise.big_batch} samples at each point.",
        parts=(table,),
    )
