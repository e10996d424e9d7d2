"""``autopar bench``: run many plans, predicted beside measured."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from autopar.cli import convergence_options as options
from autopar.cli.options import ClusterName, Fix, GlobalBatch, Json, Out
from autopar.cli.session import session
from autopar.core.units import format_bytes, format_seconds

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import Console

    from autopar.results.bench import BenchResult


def command(
    target: Annotated[str, typer.Argument(help="Task to bench: zoo:NAME or file.py:function.")],
    cluster: ClusterName = "local",
    plans: Annotated[
        list[str] | None,
        typer.Option(help="top:N, spread:N or a plan file; repeatable."),
    ] = None,
    global_batch: GlobalBatch = None,
    steps: Annotated[int, typer.Option(min=1, help="Measured steps per run.")] = 20,
    warmup: Annotated[int, typer.Option(min=0, help="Steps before measuring.")] = 3,
    repeats: Annotated[int, typer.Option(min=1, help="Launches per plan, rotating.")] = 2,
    fix: Fix = None,
    convergence: options.Convergence = False,
    sync: options.Sync = None,
    target_loss: options.TargetLoss = None,
    ranks: options.Ranks = None,
    probe_steps: options.ProbeSteps = 200,
    seeds: options.Seeds = 3,
    slack: options.Slack = 3.0,
    out: Out = None,
    json_output: Json = False,
) -> None:
    """Run several plans of a task here and compare prediction and measurement.

    Examples: `autopar bench zoo:mlp --cluster local:2 --plans spread:8`,
    `autopar bench zoo:chars?size=small --convergence --sync local_sgd:8,all_reduce+topk`.
    """
    with session("bench", json_output=json_output) as talk:
        if convergence:
            from autopar.cli.bench_convergence import measure

            measure(
                talk,
                target,
                sync=sync,
                target_loss=target_loss,
                ranks=ranks,
                probe_steps=probe_steps,
                seeds=seeds,
                slack=slack,
                global_batch=global_batch,
                out=out,
            )
            return
        from autopar.api.benchmark import BenchOptions, bench_stored
        from autopar.reporting import write_report

        wanted = BenchOptions(
            plans=tuple(plans or ("spread:6",)),
            global_batch=global_batch,
            steps=steps,
            warmup=warmup,
            repeats=repeats,
            fix=tuple(fix or ()),
        )
        result, path = bench_stored(target, cluster, wanted, out=out, progress=talk.progress)
        page = write_report(path, out=path.with_suffix(".html"))
        data = {**result.to_dict(), "report": str(page), "bench": str(path)}
        talk.finish(data, lambda console: _show(console, result, page))


def _show(console: Console, result: BenchResult, page: Path) -> None:
    from rich.table import Table

    table = Table("plan", "predicted", "measured", "error", "memory pred.", "measured", box=None)
    for row in result.rows:
        table.add_row(
            row.name,
            format_seconds(row.predicted_s),
            format_seconds(row.measured_s) if row.measured_s else (row.failure or "failed"),
            f"{row.rel_error:+.1%}" if row.rel_error is not None else "",
            format_bytes(row.predicted_memory_bytes),
            format_bytes(row.measured_memory_bytes) if row.measured_memory_bytes else "",
        )
    console.print(table)
    median_error, p90 = result.median_abs_rel_error, result.p90_abs_rel_error
    tau, regret = result.kendall_tau, result.regret
    parts = [
        f"median |error| {median_error:.1%}" if median_error is not None else "",
        f"p90 {p90:.1%}" if p90 is not None else "",
        f"Kendall tau {tau:.2f}" if tau is not None else "",
        f"regret of the choice {regret:.1%}" if regret is not None else "",
    ]
    console.print(", ".join(p for p in parts if p), markup=False)
    console.print(f"report {page}", markup=False)
