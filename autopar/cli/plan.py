"""``autopar plan``: the best split, proved and explained."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from autopar.cli import plan_options as options
from autopar.cli.options import Fix, GlobalBatch, Json, Out
from autopar.cli.session import session
from autopar.core.errors import InputError
from autopar.core.units import format_bytes, format_seconds, parse_seconds
from autopar.results import SearchResult

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    from autopar.api.plan_options import PlanOptions
    from autopar.api.planning import Planned
    from autopar.cli.session import Session
    from autopar.search.machines.choose import MachineChoice
    from autopar.search.machines.offers import Wishes


FELT_S = 1.0
"""From here on the time of making or checking a profile is told."""


def command(
    profile: Annotated[
        str, typer.Argument(help="A profile file, or a target to profile first (cached).")
    ],
    cluster: options.Clusters = None,
    global_batch: GlobalBatch = None,
    samples: options.Samples = None,
    deadline: options.Deadline = None,
    budget: options.Budget = None,
    objective: options.Objective = "time",
    sync: options.Sync = "exact",
    fix: Fix = None,
    forbid: options.Forbid = None,
    max_memory: options.MaxMemory = None,
    precision: options.Precision = "auto",
    space: options.Space = options.SpaceName.AUTO,
    top: options.Top = 5,
    tune: options.Tune = False,
    explain: options.Explain = False,
    why_not: options.WhyNot = None,
    what_if: options.WhatIf = None,
    seed: options.Seed = 0,
    storage: options.Storage = None,
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
        from autopar.api.plan_options import PlanOptions
        from autopar.search.machines.offers import Wishes

        wishes = Wishes(
            samples=samples,
            deadline_s=None if deadline is None else parse_seconds(deadline),
            budget_usd=budget,
        )
        wanted = PlanOptions(
            global_batch=global_batch,
            objective=objective,
            sync=sync,
            fix=fix or (),
            forbid=forbid or (),
            max_memory=max_memory,
            precision=precision,
            space=str(space),
            top=top,
            seed=seed,
            storage=storage,
        )
        clusters = tuple(cluster or ("local",))
        planned, choice = _search(talk, profile, clusters, wishes, wanted, tune=tune)
        answers = _answers(planned, why_not, what_if)
        result = _explained(planned.result, answers, explain=explain)
        took = planned.profile_time_s
        _finish(talk, result, choice, answers, explain=explain, out=out, profile_time_s=took)


def _search(
    talk: Session,
    profile: str,
    clusters: tuple[str, ...],
    wishes: Wishes,
    wanted: PlanOptions,
    *,
    tune: bool,
) -> tuple[Planned, MachineChoice | None]:
    """The search on the cluster, or on the machines that are chosen first."""
    from autopar.search.machines.offers import Wishes

    if len(clusters) == 1 and wishes == Wishes():
        from autopar.api.planning import plan_search

        found = plan_search(profile, clusters[0], wanted, tune=tune, progress=talk.progress)
        return found, None
    if tune or "," in wanted.objective:
        raise InputError(
            "several objectives and --tune are for one cluster without wishes for machines",
            hint="choose the machines first, then plan on them",
        )
    from autopar.api.machines import machine_search

    chosen = machine_search(profile, clusters, wishes, wanted, progress=talk.progress)
    return chosen.planned, chosen.choice


def _answers(planned: Planned, why_not: str | None, what_if: str | None) -> list[str]:
    """What tuning brought, and answers to the two questions, as paragraphs."""
    answers = [planned.tuning] if planned.tuning is not None else []
    if why_not is None and what_if is None:
        return answers
    from autopar.search import what_if as answer_what_if
    from autopar.search import why_not as answer_why_not

    known = (planned.result, planned.profile, planned.cluster, planned.options)
    if why_not is not None:
        answers.append(answer_why_not(why_not, *known))
    if what_if is not None:
        answers.append(answer_what_if(what_if, *known))
    return answers


def _explained(result: SearchResult, answers: list[str], *, explain: bool) -> SearchResult:
    """The result with its full reasons, if they are asked for, and the answers."""
    if explain and result.reasons is not None:
        result = replace(result, explanation=result.reasons())
    return replace(result, explanation=(*result.explanation, *answers)) if answers else result


def _finish(
    talk: Session,
    result: SearchResult,
    choice: MachineChoice | None,
    answers: list[str],
    *,
    explain: bool,
    out: Path | None,
    profile_time_s: float,
) -> None:
    """Write, warn and print."""
    if out is not None:
        result.save(out)
    for text in result.warnings:
        talk.warn(text)
    data = {**result.to_dict(), "out": str(out) if out else None, "answers": answers}
    data["profile_time_s"] = profile_time_s
    if choice is not None:
        data |= choice.to_dict()

    def show(console: Console) -> None:
        if choice is not None:
            from autopar.cli.plan_machines import show_machines

            show_machines(console, choice)
        _show(console, result, explain, answers, out, profile_time_s)

    talk.finish(data, show)


def _show(
    console: Console,
    result: SearchResult,
    explain: bool,
    answers: list[str],
    out: Path | None,
    profile_time_s: float,
) -> None:
    from autopar.cli.plan_tables import baseline_words, plans_table

    best = result.best
    console.print(f"[bold green]{best.name}[/bold green]  ", end="")
    console.print(_verdict(result), markup=False)
    console.print(plans_table(result))
    if result.pareto is not None:
        from autopar.cli.plan_pareto import show_pareto

        show_pareto(console, result.pareto)
    for name, baseline in result.baselines.items():
        console.print(
            f"  {name + ':':18} {baseline_words(baseline, best, result.objective)}",
            markup=False,
            style="dim",
        )
    proof = result.certificate
    rejected = ", ".join(f"{n} {reason}" for reason, n in proof.rejected.items()) or "none"
    console.print(
        f"{proof.space} plans: {proof.priced} priced, {proof.bounded} bounded away, "
        f"rejected: {rejected}; gap {proof.gap:.1%}; {_times(result, profile_time_s)}",
        markup=False,
    )
    for paragraph in result.explanation if explain else answers:
        console.print()
        console.print(_opened(paragraph))
    if out is not None:
        console.print(f"written {out}", markup=False)


def _times(result: SearchResult, profile_time_s: float) -> str:
    """Seconds of the search and, where they are felt, those of the profile before it."""
    text = f"{result.search_time_s:.2f} s"
    if profile_time_s < FELT_S:
        return text
    path = Path(str(result.profile.get("path", "")))
    if path.is_relative_to(Path.cwd()):
        path = path.relative_to(Path.cwd())
    return f"{text} after {profile_time_s:.1f} s for the profile: autopar plan {path} skips that"


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
