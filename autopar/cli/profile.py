"""``autopar profile``: a task's graph and costs, or a cluster's devices and links."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from autopar.cli.options import Json, NNodes, NodeRank, Out, Rendezvous
from autopar.cli.session import Session, session
from autopar.core.errors import InputError
from autopar.core.host_watch import disturbed
from autopar.core.units import format_bytes, format_count, format_seconds

if TYPE_CHECKING:
    from rich.console import Console

    from autopar.api.profiling import StoredProfile
    from autopar.cluster import Cluster
    from autopar.graph import GradientNoise


def command(
    target: Annotated[
        str | None,
        typer.Argument(help="zoo:NAME?key=value, package.module:function or file.py:function."),
    ] = None,
    batch: Annotated[int | None, typer.Option(help="Samples in the traced batch.")] = None,
    device: Annotated[
        str, typer.Option(help="cpu or cuda to measure here, or a catalogue name to price.")
    ] = "cpu",
    measure: Annotated[
        bool, typer.Option(help="Time blocks on the device; --no-measure counts only.")
    ] = True,
    busy_ranks: Annotated[
        int | None, typer.Option(help="Processes that compute at once while timing.")
    ] = None,
    noise_scale: Annotated[
        int | None,
        typer.Option(min=0, help="Also train so many steps and measure the gradient noise scale."),
    ] = None,
    cluster: Annotated[
        str | None, typer.Option(help="Measure a cluster instead: local or local:RANKS.")
    ] = None,
    quick: Annotated[bool, typer.Option(help="Cluster: fewer sizes and repeats.")] = False,
    nnodes: NNodes = 1,
    node_rank: NodeRank = 0,
    rdzv_endpoint: Rendezvous = None,
    out: Out = None,
    json_output: Json = False,
) -> None:
    """Trace a task and measure its ops, or measure this host's links with --cluster.

    Examples: `autopar profile zoo:gpt?size=small`, `autopar profile --cluster local:2`.
    """
    with session("profile", json_output=json_output) as talk:
        if (target is None) == (cluster is None):
            raise InputError(
                "profile needs a TARGET or --cluster, not both"
                if target
                else "nothing to profile",
                hint="autopar profile zoo:mlp, or autopar profile --cluster local:2",
            )
        if cluster is not None:
            hosts = {"nnodes": nnodes, "node_rank": node_rank, "rdzv_endpoint": rdzv_endpoint}
            _profile_cluster(talk, cluster, quick, out, hosts)
            return
        from autopar.api.profiling import profile_stored

        stored = profile_stored(
            str(target),
            batch=batch,
            device=device,
            measure=measure,
            busy_ranks=busy_ranks,
            noise_steps=noise_scale,
            out=out,
            progress=talk.progress,
        )
        for text in stored.warnings:
            talk.warn(text)
        talk.finish(_task_data(stored), lambda console: _show_task(console, stored))


def _task_data(stored: StoredProfile) -> dict[str, Any]:
    profile = stored.profile
    return {
        "profile": str(stored.path),
        "task": profile.task,
        "parameters": profile.parameter_count,
        "parameter_bytes": profile.parameter_bytes,
        "forward_flop": profile.forward_flop.at(profile.batch),
        "backward_flop": profile.backward_flop.at(profile.batch),
        "ops": len(profile.ops),
        "blocks": len(profile.blocks),
        "unique_blocks": profile.unique_blocks,
        "saved_activation_bytes": profile.saved_bytes.at(profile.batch),
        "device": profile.device,
        "batch": profile.batch,
        "uncounted": profile.uncounted,
        "gradient_noise": _noise_data(profile.gradient_noise),
        "from_cache": stored.from_cache,
    }


def _noise_data(noise: GradientNoise | None) -> dict[str, Any] | None:
    if noise is None:
        return None
    return {**noise.to_dict(), "scale": noise.scale.to_dict() if noise.scale else None}


def _show_task(console: Console, stored: StoredProfile) -> None:
    profile = stored.profile
    n = profile.batch
    rows = [
        (
            "parameters",
            f"{format_count(profile.parameter_count)} ({format_bytes(profile.parameter_bytes)})",
        ),
        ("forward", f"{format_count(profile.forward_flop.at(n))}FLOP at batch {n}"),
        ("backward", f"{format_count(profile.backward_flop.at(n))}FLOP"),
        ("saved activations", format_bytes(profile.saved_bytes.at(n))),
        (
            "graph",
            f"{len(profile.ops)} ops in {len(profile.blocks)} blocks, "
            f"{profile.unique_blocks} of them different",
        ),
        ("device", profile.device + (" (measured)" if profile.measurement else " (not timed)")),
    ]
    measured = profile.measurement
    if measured is not None:
        timed = [
            measured.curves[b.signature].at(n)
            for b in profile.blocks
            if b.signature in measured.curves
        ]
        total = sum(f + b for f, b in timed) * measured.composition_at(n)
        rows.append(
            (
                "forward + backward",
                f"{format_seconds(total)} with {measured.busy_ranks} busy ranks",
            )
        )
    if profile.gradient_noise is not None:
        rows.append(("gradient noise", profile.gradient_noise.words))
    console.print(f"[bold]{profile.task}[/bold]")
    for key, value in rows:
        console.print(f"  {key:18} {value}", markup=False)
    console.print(
        f"  {'profile':18} {stored.path}" + ("  (from cache)" if stored.from_cache else ""),
        markup=False,
    )


def _profile_cluster(
    talk: Session, text: str, quick: bool, out: Path | None, hosts: dict[str, Any]
) -> None:
    from autopar.api.clusters import default_ranks, measure_cluster
    from autopar.api.places import cluster_path
    from autopar.cluster.parse import is_local

    if text != "local" and not text.startswith("local:"):
        raise InputError(
            f"--cluster {text} cannot be measured", hint="use local or local:RANKS on each host"
        )
    ranks = is_local(text) or default_ranks()
    path = out or cluster_path(f"local-{ranks}")
    cluster = measure_cluster(ranks, out=path, quick=quick, progress=talk.progress, **hosts)
    data = {
        "cluster": str(path),
        "devices": cluster.device_count,
        "links": [
            {
                "collective": c.collective,
                "ranks": c.ranks,
                "alpha_s": c.alpha_s,
                "bytes_per_s": c.bytes_per_s,
                "concurrency": c.concurrency,
            }
            for c in cluster.curves
        ],
        "busy_slowdown": cluster.busy_slowdown,
    }
    said = disturbed(f"cluster {cluster.name}", cluster.others_share)
    if said:
        talk.warn(said)
    talk.finish(data, lambda console: _show_cluster(console, cluster, path))


def _show_cluster(console: Console, cluster: Cluster, path: Path) -> None:
    from rich.table import Table

    device = cluster.device(0)
    console.print(f"[bold]{cluster.name}[/bold]  {cluster.device_count} ranks, {device.name}")
    for dtype, peak in device.peak_flop_per_s.items():
        console.print(f"  {dtype:10} {format_count(peak)}FLOP/s per rank")
    for ranks, slowdown in sorted(cluster.busy_slowdown.items()):
        console.print(f"  {ranks} busy ranks per host: compute takes {slowdown:.2f} x")
    table = Table("collective", "ranks", "groups", "latency", "bandwidth", box=None)
    for curve in cluster.curves:
        table.add_row(
            curve.collective,
            str(curve.ranks),
            str(curve.concurrency),
            format_seconds(curve.alpha_s),
            f"{curve.bytes_per_s / 1e9:.2f} GB/s",
        )
    console.print(table)
    console.print(f"  cluster {path}", markup=False)
