"""docs/composed.md: the table, and what the errors are made of."""

from __future__ import annotations

from autopar.core.provenance import provenance
from autopar.core.stats import kendall_tau
from autopar.core.units import format_seconds
from autopar.validation.composed.campaign import GLOBAL_BATCH, Campaign, Row, rows, summary

HEAD = """# Composed plans: predicted against measured

Made by `scripts/composed` on {system}, {cpus} processors, torch {torch}, {created}.
Small zoo models, {batch} samples per step, gloo, one thread per rank; 4 ranks share 2 cores. Each
plan ran {launches} times for {steps} steps in rotating order, some time after the profile; the
lower quartile of all its steps counts. *At one speed* brings the measured time to the speed that
the host had while it was profiled, by a reference loop timed before and after each profile and run
(`autopar/profiler/speed_probe.py`); the loop took {slowest:.2f} times as long beside the slowest
run as beside the fastest with as many ranks. No constant is fitted to these plans: everything is
measured by `autopar profile` and `autopar profile --cluster`.

"""


def page(campaign: Campaign, notes: str = "") -> str:
    """The whole page.

    Args:
        campaign: What was measured.
        notes: Text below the tables, kept from the page before.
    """
    found = rows(campaign)
    runs = campaign.notes("run")
    facts = provenance()
    launches = len(runs) // max(len(found), 1)
    head = HEAD.format(
        system=facts["system"],
        cpus=facts["cpu_count"],
        torch=facts["packages"]["torch"],
        created=facts["created"],
        batch=GLOBAL_BATCH,
        launches=launches,
        steps=len(runs[0]["steps"]),
        slowest=_drift(campaign),
    )
    targets = list(dict.fromkeys(row.target for row in found))
    parts = [head, _summaries(found, targets)]
    for target in targets:
        parts.append(f"\n## `{target}`\n\n" + _table([r for r in found if r.target == target]))
    return "\n".join(parts) + (f"\n{notes}" if notes else "")


def _drift(campaign: Campaign) -> float:
    """Slowest over fastest reference loop, the largest of the numbers of ranks."""
    names = {
        (target, case.name): case.ranks
        for target, cases in campaign.cases.items()
        for case in cases
    }
    speeds: dict[int, list[float]] = {}
    for run in campaign.notes("run"):
        mean = sum(run["speed"]) / len(run["speed"])
        speeds.setdefault(names[run["target"], run["case"]], []).append(mean)
    return max(max(values) / min(values) for values in speeds.values())


def _summaries(found: list[Row], targets: list[str]) -> str:
    lines = [
        "| model | plans | step time: median error | p90 | at one speed: median | p90 "
        "| Kendall tau | memory: median error | p90 | lowest |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    groups = [(f"`{target}`", [r for r in found if r.target == target]) for target in targets]
    for name, group in [*groups, ("all", found)]:
        time, steady = summary(r.error for r in group), summary(r.steady_error for r in group)
        memory = summary(r.memory_error for r in group)
        tau = kendall_tau([r.predicted_s for r in group], [r.measured_s for r in group])
        lines.append(
            f"| {name} | {len(group)} | {time[0]:.1%} | {time[1]:.1%} | {steady[0]:.1%} "
            f"| {steady[1]:.1%} | {tau:.2f} | {memory[0]:.1%} | {memory[1]:.1%} "
            f"| {min(r.memory_error for r in group):+.1%} |"
        )
    return "\n".join(lines)


def _table(group: list[Row]) -> str:
    lines = [
        "| plan | ranks | predicted | measured | error | at one speed | memory predicted "
        "| measured | error |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in group:
        lines.append(
            f"| {row.case.name} | {row.case.ranks} | {format_seconds(row.predicted_s)} "
            f"| {format_seconds(row.measured_s)} | {row.error:+.1%} | {row.steady_error:+.1%} "
            f"| {row.predicted_bytes / 2**20:.0f} MiB | {row.measured_bytes / 2**20:.0f} MiB "
            f"| {row.memory_error:+.1%} |"
        )
    return "\n".join(lines)
