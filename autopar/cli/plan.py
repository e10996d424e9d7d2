"""``autopar plan``: the best split, proved and explained."""

from __future__ import annotations

from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from autopar.cli.options import GlobalBatch, Json, Out
from autopar.cli.session import session
from autopar.core.errors import InputError
from autopar.core.units import format_bytes, format_seconds, parse_seconds
from autopar.results import RankedPlan, Rejection, SearchResult

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    from autopar.api.planning import Planned
    from autopar.search.machines import MachineChoice


MACHINES = "Which machines"


class Space(StrEnum):
    """Which plans compete."""

    AUTO = "auto"
    FULL = "full"
    RUNNABLE = "runnable"


def command(
    profile: Annotated[
        str, typer.Argument(help="A profile file, or a target to profile first (cached).")
    ],
    cluster: Annotated[
        list[str] | None,
        typer.Option(
            help="local[:RANKS], NODESxDEVICES:MACHINE, several joined by +, or a file; "
            "repeat it to choose among clusters.",
            show_default="local",
        ),
    ] = None,
    global_batch: GlobalBatch = None,
    samples: Annotated[
        int | None, typer.Option(min=1, help="Samples to train on.", rich_help_panel=MACHINES)
    ] = None,
    deadline: Annotated[
        str | None,
        typer.Option(help="Longest time, e.g. 24h, 90min, 3d.", rich_help_panel=MACHINES),
    ] = None,
    budget: Annotated[
        float | None, typer.Option(help="Most money, in USD.", rich_help_panel=MACHINES)
    ] = None,
    objective: Annotated[
        str,
        typer.Option(
            help="time, time-to-target, memory, energy or cost; a list like time,memory for the "
            "plans that no other beats in all of them."
        ),
    ] = "time",
    sync: Annotated[
        str,
        typer.Option(
            help="Sync modes that compete: exact, any (with time-to-target), or names joined by "
            "commas: all_reduce, ps_sync, ps_stale, ps_async, local_sgd, post_local_sgd, "
            "hierarchical, diloco; options as local_sgd:8, compression as all_reduce+int8. "
            "See autopar catalog sync."
        ),
    ] = "exact",
    fix: Annotated[
        list[str] | None, typer.Option(help="Demand axis=value, e.g. pp=2; repeatable.")
    ] = None,
    forbid: Annotated[
        list[str] | None, typer.Option(help="Rule out axis=value; repeatable.")
    ] = None,
    max_memory: Annotated[
        str | None, typer.Option(help="Memory limit per device, e.g. 20GiB.")
    ] = None,
    precision: Annotated[
        str, typer.Option(help="Compute dtype: float32, tf32, bfloat16, float16, float8 or auto.")
    ] = "auto",
    space: Annotated[
        Space,
        typer.Option(help="full, what autopar run executes, or auto: runnable where measured."),
    ] = Space.AUTO,
    top: Annotated[int, typer.Option(min=1, help="Plans to rank.")] = 5,
    tune: Annotated[
        bool, typer.Option("--tune", help="Tune the best plan's gradient bucket size.")
    ] = False,
    explain: Annotated[bool, typer.Option("--explain", help="Say why, with numbers.")] = False,
    why_not: Annotated[
        str | None, typer.Option(help="Why not this plan, e.g. 'pp=2,schedule=gpipe'.")
    ] = None,
    what_if: Annotated[
        str | None, typer.Option(help="What changes, e.g. inter_node_bandwidth=x0.25.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of weights and data in the plan.")] = 0,
    storage: Annotated[
        str | None,
        typer.Option(
            help="Keep the search: sqlite:///FILE, journal:FILE or another Optuna URL; several "
            "processes that name the same share the work."
        ),
    ] = None,
    out: Out = None,
    json_output: Json = False,
) -> None:
    """Search for the best plan of a task on a cluster, prove it and explain it.

    Examples: `autopar plan zoo:gpt?size=small --cluster local:2 --out plan.json`,
    `autopar plan profiles/gpt.json --cluster 128x8:a100-80gb-sxm --global-batch 1536 --explain`.

    With --deadline the cheapest machines that meet it, with --budget the fastest within it, of
    all clusters given and of their smaller powers of two of nodes:
    `autopar plan gpt.json --cluster 8x8:h100-sxm --samples 1000000 --deadline 24h`.
    """
    with session("plan", json_output=json_output) as talk:
        planned, choice = _search(
            profile,
            tuple(cluster or ("local",)),
            samples=samples,
            deadline_s=None if deadline is None else parse_seconds(deadline),
            budget_usd=budget,
            global_batch=global_batch,
            objective=objective,
            sync=sync,
            fix=fix or (),
            forbid=forbid or (),
            max_memory=max_memory,
            precision=precision,
            top=top,
            seed=seed,
            storage=storage,
            space=str(space),
            tune=tune,
            progress=talk.progress,
        )
        answers = [planned.tuning] if planned.tuning is not None else []
        answers += _answers(planned, why_not, what_if)
        result = planned.result
        if explain and result.reasons is not None:
            result = replace(result, explanation=result.reasons())
        if answers:
            result = replace(result, explanation=(*result.explanation, *answers))
        if out is not None:
            result.save(out)
        for text in result.warnings:
            talk.warn(text)
        data = {**result.to_dict(), "out": str(out) if out else None, "answers": answers}

        def show(console: Console) -> None:
            if choice is not None:
                from autopar.cli.plan_machines import show_machines

                show_machines(console, choice)
            _show(console, result, explain, answers, out)

        talk.finish(data if choice is None else {**data, **choice.to_dict()}, show)


def _search(
    profile: str,
    clusters: tuple[str, ...],
    *,
    samples: int | None,
    deadline_s: float | None,
    budget_usd: float | None,
    **options: Any,
) -> tuple[Planned, MachineChoice | None]:
    """The search on the cluster, or on the machines that are chosen first."""
    if len(clusters) == 1 and samples is deadline_s is budget_usd is None:
        from autopar.api.planning import plan_search

        return plan_search(profile, clusters[0], **options), None
    tune = options.pop("tune")
    if tune or "," in options["objective"]:
        raise InputError(
            "several objectives and --tune are for one cluster without wishes for machines",
            hint="choose the machines first, then plan on them",
        )
    from autopar.api.machines import machine_search

    found = machine_search(
        profile,
        clusters,
        samples=samples,
        deadline_s=deadline_s,
        budget_usd=budget_usd,
        **options,
    )
    return found.planned, found.choice


def _answers(planned: Planned, why_not: str | None, what_if: str | None) -> list[str]:
    """Answers to the two questions, as paragraphs."""
    if why_not is None and what_if is None:
        return []
    from autopar.search import questions

    known = (planned.result, planned.profile, planned.cluster, planned.options)
    answers = []
    if why_not is not None:
        answers.append(questions.why_not(why_not, *known))
    if what_if is not None:
        answers.append(questions.what_if(what_if, *known))
    return answers


def _show(
    console: Console, result: SearchResult, explain: bool, answers: list[str], out: Path | None
) -> None:
    from rich.table import Table

    best = result.best
    console.print(f"[bold green]{best.name}[/bold green]  ", end="")
    console.print(_verdict(result), markup=False)
    table = Table("", "plan", "step", "range", "samples/s", "memory", "bubble", "sync", box=None)
    for item in result.top:
        table.add_row("*" if item is result.top[0] else "", *_row(item))
    console.print(table)
    if result.pareto is not None:
        from autopar.cli.plan_pareto import show_pareto

        show_pareto(console, result.pareto)
    for name, baseline in result.baselines.items():
        console.print(f"  {name + ':':18} {_baseline(baseline, best)}", markup=False, style="dim")
    proof = result.certificate
    rejected = ", ".join(f"{n} {reason}" for reason, n in proof.rejected.items()) or "none"
    console.print(
        f"{proof.space} plans: {proof.priced} priced, {proof.bounded} bounded away, "
        f"rejected: {rejected}; gap {proof.gap:.1%}; {result.search_time_s:.2f} s",
        markup=False,
    )
    for paragraph in result.explanation if explain else answers:
        console.print()
        console.print(_opened(paragraph))
    if out is not None:
        console.print(f"written {out}", markup=False)


def _opened(paragraph: str) -> Text:
    """A paragraph with the words that open it, up to the first full stop, set in bold."""
    from rich.text import Text

    from autopar.reporting.text import split_opening

    opening, rest = split_opening(paragraph)
    return Text.assemble((opening, "bold"), rest)


def _verdict(result: SearchResult) -> str:
    price = result.best.price
    text = (
        f"{format_seconds(price.step_time_s.value)} per step, "
        f"{format_bytes(price.peak_memory_bytes.value)} of "
        f"{format_bytes(price.capacity_bytes)} per device"
    )
    if price.mfu is not None:
        text += f", MFU {price.mfu:.0%}"
    return text


def _baseline(item: RankedPlan | Rejection, best: RankedPlan) -> str:
    if isinstance(item, Rejection):
        return f"not possible: {item.detail}"
    step, fastest = item.price.step_time_s.value, best.price.step_time_s.value
    return f"{format_seconds(step)} ({item.name}), {step / fastest - 1:+.1%}"


def _row(item: RankedPlan) -> list[Any]:
    price = item.price
    step = price.step_time_s
    parts = price.breakdown
    total = parts.total_s or 1.0
    return [
        item.name,
        format_seconds(step.value),
        f"{format_seconds(step.low)} .. {format_seconds(step.high)}",
        f"{price.samples_per_s:.4g}",
        format_bytes(price.peak_memory_bytes.value),
        f"{parts.bubble_s / total:.0%}",
        f"{parts.gradient_sync_s / total:.0%}",
    ]
