"""``autopar run``: execute a plan, measure it, report it."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autopar.cli import run_options as options
from autopar.cli import server_options as servers
from autopar.cli.options import Json, NNodes, NodeRank, Rendezvous
from autopar.cli.session import session
from autopar.core.errors import GateError, InputError
from autopar.core.units import format_bytes, format_seconds

if TYPE_CHECKING:
    from rich.console import Console

    from autopar.cli.session import Session
    from autopar.plans import Plan
    from autopar.results import RunRecord, VerifyResult


def command(
    plan: options.PlanFile,
    pick: options.Pick = 0,
    steps: options.Steps = 20,
    warmup: options.Warmup = 3,
    verify: options.Verify = False,
    dry_run: options.DryRun = False,
    tolerance: options.Tolerance = None,
    data_split: options.DataSplit = None,
    sampler: options.Sampler = None,
    clip_norm: options.ClipNorm = None,
    checkpoint_every: options.CheckpointEvery = None,
    resume: options.Resume = None,
    nnodes: NNodes = 1,
    node_rank: NodeRank = 0,
    rdzv_endpoint: Rendezvous = None,
    server_tls_cert: servers.TlsCert = None,
    server_tls_key: servers.TlsKey = None,
    server_tls_ca: servers.TlsCa = None,
    server_token: servers.Token = None,
    server_address: servers.Address = None,
    server_on_loss: servers.Loss = servers.OnLoss.FAIL,
    server_checkpoint_every: servers.CheckpointEvery = 0,
    out: options.RunFolder = None,
    json_output: Json = False,
) -> None:
    """Execute a plan with torch.distributed, measure it and write an HTML report.

    Examples: `autopar run plan.json --steps 50`, `autopar run plan.json --verify`.
    """
    with session("run", json_output=json_output) as talk:
        from autopar.api.places import run_folder
        from autopar.api.running import load_plan, run

        chosen, found = load_plan(plan, pick=pick)
        if dry_run:
            data = _dry_run(chosen, nnodes)
            talk.finish(data, lambda console: _show_dry_run(console, data))
            return
        _check_tolerance(tolerance, chosen)
        folder = out or run_folder(chosen.task.name, chosen.name, chosen.hash)
        record = run(
            chosen,
            out=folder,
            search=found,
            steps=steps,
            warmup=warmup,
            verify=verify,
            data_split=data_split,
            sampler=sampler,
            clip_norm=clip_norm,
            checkpoint_every=checkpoint_every or 0,
            resume=resume,
            nnodes=nnodes,
            node_rank=node_rank,
            rdzv_endpoint=rdzv_endpoint,
            servers=servers.server_options(
                tls_cert=server_tls_cert,
                tls_key=server_tls_key,
                tls_ca=server_tls_ca,
                token=server_token,
                address=server_address,
                on_loss=server_on_loss,
                checkpoint_every=server_checkpoint_every,
            ),
        )
        _finish(talk, record, folder, tolerance)


def _check_tolerance(tolerance: float | None, plan: Plan) -> None:
    if tolerance is not None and not (tolerance > 0 and plan.predicted):
        raise InputError(
            f"--tolerance {tolerance} cannot be checked: "
            + ("it must be positive" if plan.predicted else "the plan has no prediction"),
            hint="use a plan made by `autopar plan`, and a tolerance such as 0.15",
        )


def _finish(talk: Session, record: RunRecord, folder: Path, tolerance: float | None) -> None:
    """Warn, print, and let the gates decide."""
    for text in record.warnings:
        talk.warn(text)
    data = _data(record, folder)
    talk.data = data
    _gates(record, data, tolerance)
    talk.finish(data, lambda console: _show(console, record, data))


def _data(record: RunRecord, folder: Path) -> dict[str, Any]:
    """The contract's ``data`` of a run."""
    predicted = record.plan.predicted
    median_s = record.step_time_quantiles_s["median"]
    peak = max(record.peak_memory_bytes)
    step = predicted.get("step_time_s")
    memory = predicted.get("peak_memory_bytes")
    return {
        "run_dir": str(folder),
        "report": str(folder / "report.html"),
        "name": record.plan.name,
        "steps": len(record.step_times_s),
        "step_time_s": record.step_time_quantiles_s,
        "predicted": {"step_time_s": step, "peak_memory_bytes": memory},
        "measured": {
            "peak_memory_bytes": peak,
            "breakdown_s": record.breakdown.to_dict(),
        },
        "error": {
            "step_time_rel": step["value"] / median_s - 1 if step else None,
            "peak_memory_rel": memory["value"] / peak - 1 if memory else None,
            "step_time_rel_at_pace": record.step_error_at_pace,
        },
        "slowdown": record.slowdown,
        "losses": list(record.losses),
        "verify": asdict(record.verify) if record.verify else None,
    }


def _explained(verify: VerifyResult) -> str:
    """What rounding alone may explain of a failed comparison."""
    if verify.rounding_rel is None:
        return ""
    return (
        f"rounding alone explains gradients off by up to {verify.rounding_rel:.1e} on this model; "
        "verify with larger microbatches (BatchNorm over more values) to tell it from an error; "
    )


def _gates(record: RunRecord, data: dict[str, Any], tolerance: float | None) -> None:
    if record.verify is not None and not record.verify.passed:
        v = record.verify
        raise GateError(
            f"verify failed: loss off by {v.loss_rel:.2e}, gradients {v.grad_rel:.2e}, "
            f"weights {v.weight_rel:.2e}; bound {v.tolerance:.0e}",
            hint=_explained(v) + f"see {data['report']}",
        )
    error = data["error"]["step_time_rel"]
    if tolerance is not None and error is not None and abs(error) > tolerance:
        raise GateError(
            f"predicted step time is off by {error:+.1%}, more than {tolerance:.0%}",
            hint=f"see {data['report']}",
        )


def _show(console: Console, record: RunRecord, data: dict[str, Any]) -> None:
    times = data["step_time_s"]
    predicted = data["predicted"]["step_time_s"]
    text = f"{record.plan.name}: {format_seconds(times['median'])} per step measured"
    if predicted:
        error = data["error"]["step_time_rel"]
        text += f", {format_seconds(predicted['value'])} predicted ({error:+.1%})"
    text += f", peak {format_bytes(data['measured']['peak_memory_bytes'])} per rank"
    console.print(text, markup=False)
    if record.verify is not None:
        v = record.verify
        console.print(
            f"verified against one process: loss {v.loss_rel:.1e}, gradients {v.grad_rel:.1e}, "
            f"weights {v.weight_rel:.1e} (bound {v.tolerance:.0e})",
            markup=False,
        )
        if v.note:
            console.print(v.note, markup=False)
    console.print(f"loss {record.losses[0]:.4g} -> {record.losses[-1]:.4g}", markup=False)
    console.print(f"report {data['report']}", markup=False)


def _dry_run(plan: Plan, nnodes: int) -> dict[str, Any]:
    """What would run: command, ranks, stages; nothing is started."""
    from autopar.executor.launching.torchrun import command as torchrun_command
    from autopar.executor.options import RunOptions

    how = RunOptions(
        out=Path("RUN_DIR"), nnodes=nnodes, rdzv_endpoint="HOST:PORT" if nnodes > 1 else None
    )
    ranks = []
    for rank in range(plan.world_size):
        place = plan.mesh.coordinates(rank)
        stages = [s for s in plan.stages if s.pp == place["pp"]]
        ranks.append(
            {
                "rank": rank,
                "device": plan.placement[rank],
                "coordinates": place,
                "ops": [[s.first_op, s.stop_op] for s in stages],
                "blocks": [name for s in stages for name in s.blocks],
            }
        )
    return {
        "run_dir": None,
        "report": None,
        "dry_run": True,
        "name": plan.name,
        "plan_hash": plan.hash,
        "command": torchrun_command(Path("RUN_DIR/job.json"), how, plan.world_size // nnodes),
        "ranks": ranks,
        "predicted": {
            key: plan.predicted.get(key) for key in ("step_time_s", "peak_memory_bytes")
        },
    }


def _show_dry_run(console: Console, data: dict[str, Any]) -> None:
    console.print(f"{data['name']} ({data['plan_hash']})", markup=False)
    console.print("  " + " ".join(data["command"]), markup=False)
    for row in data["ranks"]:
        spans = ", ".join(f"ops {a}..{b - 1}" for a, b in row["ops"])
        console.print(f"  rank {row['rank']} on device {row['device']}: {spans}", markup=False)
