"""Start the ranks of a plan, follow them, and hand back the record."""

from __future__ import annotations

import io
import json
import os
from dataclasses import replace
from pathlib import Path

from autopar.core.errors import EnvironmentUnableError, InputError
from autopar.core.host_watch import HostWatch, disturbed
from autopar.core.io import write_text_atomic
from autopar.executor.options import RunOptions
from autopar.executor.processes.progress import FILE_NAME as PROGRESS_FILE
from autopar.executor.processes.progress import ProgressView
from autopar.executor.server.options import ServerOptions
from autopar.executor.server.roles import server_sync
from autopar.executor.server.tls import server_context
from autopar.plans import Plan
from autopar.results import RunRecord
from autopar.results.record import FILE_NAME as RECORD_FILE
from autopar.tasks import Task


def run_plan(plan: Plan, task: Task, options: RunOptions) -> RunRecord:
    """Train with a plan and measure it.

    Args:
        plan: The plan.
        task: The task it was made for.
        options: Steps, folder, launcher and so on.

    Returns:
        The record, also written to ``options.out / "record.json"``.

    Raises:
        InputError: Plan, task and options do not fit each other.
        EnvironmentUnableError: This host cannot run it.
        TrainingError: A rank failed; the message names the first one and its log.
    """
    local_ranks = _local_ranks(plan, options)
    _check_servers(plan, options)
    if options.launcher == "torchrun" and task.target is None:
        raise InputError(
            f"task '{task.name}' has no target, torchrun's processes cannot find it",
            hint="name it as module:function or path/to/file.py:function, or use launcher 'fork'",
        )
    _check_host(plan, local_ranks)
    _prepare(options)
    watch = HostWatch()
    predicted = plan.predicted.get("step_time_s") if plan.predicted else None
    predicted_s = float(predicted["value"]) if predicted else None
    stream = io.StringIO() if options.quiet else None
    view = ProgressView(options.out / PROGRESS_FILE, predicted_s, stream)
    if options.launcher == "torchrun":
        from autopar.executor.launching.torchrun import run_with_torchrun

        job = {"plan": plan.to_dict(), "options": options.to_dict(), "target": task.target}
        path = options.out / (f"job-{options.node_rank}.json" if options.node_rank else "job.json")
        write_text_atomic(path, json.dumps(job, indent=1) + "\n")
        run_with_torchrun(path, plan, options, local_ranks, view)
    else:
        from autopar.executor.launching.forks import run_with_forks

        run_with_forks(plan, task, options, view)
    return _with_others(RunRecord.load(options.out), watch, options)


def _with_others(record: RunRecord, watch: HostWatch, options: RunOptions) -> RunRecord:
    """The record with what other programs took of this host, from start to end."""
    if options.node_rank:
        return record
    others = watch.others()
    said = [disturbed(f"plan {record.plan.name}", others), record.pace_warning()]
    record = replace(
        record,
        warnings=(*record.warnings, *(text for text in said if text)),
        provenance={**record.provenance, "others_share": others},
    )
    record.save(options.out)
    return record


def _local_ranks(plan: Plan, options: RunOptions) -> int:
    """Ranks to start on this host.

    Raises:
        InputError: The plan's ranks do not spread evenly over the hosts.
    """
    world = plan.world_size
    if options.nnodes > 1 and options.local_ranks is not None:
        return options.local_ranks
    if world % options.nnodes:
        raise InputError(
            f"plan {plan.name} has {world} ranks for {options.nnodes} hosts",
            hint="choose a number of hosts that divides the ranks",
        )
    if options.local_ranks not in (None, world // options.nnodes):
        raise InputError(
            f"plan {plan.name} has {world} ranks, local_ranks={options.local_ranks} on "
            f"{options.nnodes} host(s) makes {(options.local_ranks or 0) * options.nnodes}",
            hint=f"use {world // options.nnodes}",
        )
    return world // options.nnodes


def _check_servers(plan: Plan, options: RunOptions) -> None:
    """Refuse options of servers that a plan does not have: TLS would protect nothing.

    Raises:
        InputError: The plan has no parameter servers, or not all that they need was given.
    """
    if server_sync(plan) is not None:
        options.servers.listen_on(options.nnodes)
        options.servers.token(options.nnodes)
        if options.servers.tls is not None:
            server_context(options.servers.tls)
        return
    if options.servers != ServerOptions():
        raise InputError(
            f"plan {plan.name} has sync '{plan.sync}' and no parameter servers, for which "
            "options were given; its collectives are not encrypted",
            hint="leave out the --server-* options, or plan with --sync ps_sync",
        )


RANKS_PER_CORE = 8


def _check_host(plan: Plan, local_ranks: int) -> None:
    """Refuse to start a cluster's worth of processes on one host.

    Raises:
        EnvironmentUnableError: Far more ranks than cores.
    """
    cores = os.cpu_count() or 1
    if local_ranks > max(16, RANKS_PER_CORE * cores):
        raise EnvironmentUnableError(
            f"plan {plan.name} for '{plan.cluster}' would start {local_ranks} ranks on this host "
            f"with {cores} cores",
            hint="run it on its own hosts with --nnodes, or plan for local:2",
        )


def _prepare(options: RunOptions) -> None:
    """Make the run folder and clear what an earlier run left of itself.

    Raises:
        InputError: The folder cannot be made or written.
    """
    out = options.out
    try:
        for folder in (out, out / "logs", out / "errors"):
            folder.mkdir(parents=True, exist_ok=True)
        if options.node_rank:
            return  # the folder may be shared with the first host, which clears it
        stale: list[Path] = [out / RECORD_FILE, out / PROGRESS_FILE]
        stale += [*(out / "errors").glob("rank-*.json"), *(out / "logs").glob("*.log")]
        for path in stale:
            path.unlink(missing_ok=True)
    except OSError as error:
        raise InputError(
            f"cannot use run folder {out}: {error.strerror}", hint="choose another with --out"
        ) from error
    if not os.access(out, os.W_OK):
        raise InputError(f"run folder {out} is not writable", hint="choose another with --out")


def threads_per_rank(local_ranks: int) -> int:
    """Compute threads of each rank: the host's cores shared out, one at least."""
    cores = os.cpu_count() or 1
    affinity = getattr(os, "sched_getaffinity", None)
    if affinity is not None:
        cores = len(affinity(0))
    return max(1, cores // local_ranks)


def require_fork() -> None:
    """Refuse where processes cannot be forked.

    Raises:
        EnvironmentUnableError: No ``fork`` on this system.
    """
    if not hasattr(os, "fork"):
        raise EnvironmentUnableError(
            "this system cannot fork processes", hint="use launcher 'torchrun'"
        )
