"""Where every number comes from: estimates, assumptions, environment, words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from autopar.cluster import Cluster
from autopar.core.estimate import Estimate
from autopar.reporting.model import Prose, Section
from autopar.reporting.table import Column, Kind, Table, Value
from autopar.reporting.text import clean
from autopar.results import PlanPrice

MAX_CELL = 400
SOURCES = {
    "measured": "timed on this hardware",
    "calibrated": "a model fitted to measurements on this hardware",
    "analytic": "computed from the graph and the figures of the device",
    "assumed": "a constant nobody measured here; see the assumptions",
}
GLOSSARY = {
    "step": "One optimizer step: forward, backward, gradient synchronisation, optimizer.",
    "step time": "Wall time between the ends of two optimizer steps, on the slowest rank.",
    "microbatch": "The samples one forward runs; a step has several, their gradients are summed.",
    "global batch": "Samples of one optimizer step over all replicas.",
    "replica": "A full copy of the model: one rank, or a pipeline of ranks.",
    "stage": "A contiguous run of operators placed on one pipeline rank.",
    "bubble": "Idle time for lack of work: pipeline fill and drain, waiting for other ranks.",
    "exposed": "Communication that does not hide behind compute.",
    "recompute": "Activations dropped after forward and computed again before backward.",
    "peak memory": "Most bytes at any moment of the step: resident on a CPU, allocated on CUDA.",
    "MFU": "Model FLOPs of a step over what all ranks could do at the device's dense peak.",
    "error": "Predicted over measured, minus 1.",
    "gap": "How much better than the best plan the smallest lower bound left unpriced is; 0 is a "
    "proof that nothing in the space is predicted to be faster.",
}


def appendix_section(
    price: PlanPrice | None,
    environment: Mapping[str, Mapping[str, Any]],
    cluster: Cluster | None = None,
) -> Section:
    """Estimates with ranges and sources, assumptions, constants, environment, glossary."""
    parts: list[Table | Prose] = []
    if price:
        parts += [estimates_table(price), assumptions_table(price)]
    if cluster:
        parts.append(constants_table(cluster))
    parts += [environment_table(environment), glossary_table()]
    return Section(
        id="appendix",
        title="Appendix",
        lead="Every figure with its source.",
        parts=tuple(part for part in parts if not isinstance(part, Table) or part.rows),
    )


def estimates_table(price: PlanPrice) -> Table:
    """Headline estimates with range and source."""
    named: tuple[tuple[str, Kind, Estimate | None], ...] = (
        ("step_time_s", "seconds", price.step_time_s),
        ("peak_memory_bytes", "bytes", price.peak_memory_bytes),
        ("energy_joule", "number", price.energy_joule),
        ("cost_usd", "number", price.cost_usd),
    )
    known = [(name, kind, e) for name, kind, e in named if e is not None]
    rows = tuple((n, e.value, e.low, e.high, e.source, SOURCES[e.source]) for n, _, e in known)
    return Table(
        id="estimates-data",
        caption="Predicted figures of one step, with their range and weakest source",
        columns=(
            Column("figure", "figure"),
            Column("value", "value", "number"),
            Column("low", "low", "number"),
            Column("high", "high", "number"),
            Column("source", "source"),
            Column("meaning", "which means"),
        ),
        rows=rows,
        row_kinds=tuple(kind for _, kind, _ in known),
    )


def assumptions_table(price: PlanPrice) -> Table:
    """Constants that were assumed rather than measured."""
    return Table(
        id="assumptions-data",
        caption="Assumptions behind the prediction",
        columns=(Column("assumption", "assumption"),),
        rows=tuple((clean(text, MAX_CELL),) for text in price.assumptions),
    )


def constants_table(cluster: Cluster) -> Table:
    """Constants of devices and links, each with its source."""
    rows: list[tuple[Value, ...]] = []
    for machine in dict.fromkeys(group.machine.name for group in cluster.groups):
        found = next(g.machine for g in cluster.groups if g.machine.name == machine)
        device = found.device
        for dtype, peak in device.peak_flop_per_s.items():
            key = f"peak_flop_per_s.{dtype}"
            source = device.sources.get(key) or device.sources.get("peak_flop_per_s")
            rows.append((device.name, key, peak, source))
        for key in (
            "memory_bytes",
            "memory_bytes_per_s",
            "launch_s",
            "power_watt",
            "usd_per_hour",
        ):
            rows.append((device.name, key, getattr(device, key), device.sources.get(key)))
        for link in (found.intra, found.inter):
            for key in ("bytes_per_s", "latency_s", "efficiency"):
                rows.append((link.name, key, getattr(link, key), link.sources.get(key)))
    unique = tuple(dict.fromkeys(row for row in rows if row[2] is not None))
    return Table(
        id="constants-data",
        caption="Constants of the machines, in SI units",
        columns=(
            Column("part", "device or link"),
            Column("constant", "constant"),
            Column("value", "value", "number"),
            Column("source", "source"),
        ),
        rows=unique,
        searchable=len(unique) > 12,
    )


def environment_table(environment: Mapping[str, Mapping[str, Any]]) -> Table:
    """Provenance of each document, flattened."""
    rows = tuple(
        (document, key, value)
        for document, values in environment.items()
        for key, value in _flat(values)
    )
    return Table(
        id="environment-data",
        caption="Environment",
        columns=(
            Column("document", "document"),
            Column("key", "key"),
            Column("value", "value"),
        ),
        rows=rows,
    )


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in values.items():
        name = f"{prefix}{clean(key)}"
        if isinstance(value, Mapping):
            yield from _flat(value, f"{name}.")
        elif isinstance(value, list | tuple):
            yield name, clean(" ".join(map(str, value)), MAX_CELL)
        elif value is not None:
            yield name, clean(value, MAX_CELL)


def glossary_table() -> Table:
    """The words of the page."""
    return Table(
        id="glossary-data",
        caption="Glossary",
        columns=(Column("word", "word"), Column("meaning", "meaning")),
        rows=tuple(GLOSSARY.items()),
    )
