"""Launcher over torchrun's agent and rendezvous: one host or several."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import autopar
from autopar.core.errors import EnvironmentUnableError
from autopar.executor.launching.launch import threads_per_rank
from autopar.executor.options import RunOptions
from autopar.executor.processes.failures import diagnose
from autopar.executor.processes.progress import ProgressView
from autopar.executor.server.options import TOKEN_VARIABLE
from autopar.executor.server.roles import server_sync
from autopar.plans import Plan

_TERM_GRACE_S = 3.0
_AGENT = "autopar.executor.launching.agent"


def command(job: Path, options: RunOptions, local_ranks: int) -> list[str]:
    """The torchrun command of this host."""
    return [sys.executable, "-m", "torch.distributed.run", *_arguments(job, options, local_ranks)]


def _arguments(job: Path, options: RunOptions, local_ranks: int) -> list[str]:
    line = [f"--nproc-per-node={local_ranks}"]
    if options.nnodes == 1:
        line += ["--standalone"]
    else:
        first = options.node_rank == 0
        line += [
            f"--nnodes={options.nnodes}",
            f"--node-rank={options.node_rank}",
            "--rdzv-backend=c10d",
            f"--rdzv-endpoint={options.rdzv_endpoint}",
            f"--rdzv-conf=is_host={int(first)},join_timeout={int(options.timeout_s)}",
            "--rdzv-id=autopar",
        ]
    return [*line, "-m", "autopar.executor.launching.worker", str(job)]


def environment(plan: Plan, local_ranks: int, token: bytes | None = None) -> dict[str, str]:
    """Environment of the agent and its workers.

    A fresh store for every rendezvous is asked for: with the shared one, a second attempt reads
    the addresses of the first one's dead processes. A plan that names its threads gets them, for
    its prediction was measured with that many.
    """
    threads = plan.threads or os.environ.get("OMP_NUM_THREADS") or threads_per_rank(local_ranks)
    package_parent = str(Path(autopar.__file__).resolve().parent.parent)
    search = [package_parent, *filter(None, [os.environ.get("PYTHONPATH")])]
    return {
        "PYTHONUNBUFFERED": "1",
        **os.environ,
        "OMP_NUM_THREADS": str(threads),
        "PYTHONPATH": os.pathsep.join(search),
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
        **({TOKEN_VARIABLE: token.decode()} if token is not None else {}),
    }


def run_with_torchrun(
    job: Path, plan: Plan, options: RunOptions, local_ranks: int, view: ProgressView
) -> None:
    """Run this host's ranks and wait for them.

    Args:
        job: The job file that the workers read.
        plan: The plan.
        options: The run's options.
        local_ranks: Ranks to start here.
        view: Shows the progress meanwhile.

    Raises:
        TrainingError: A rank failed.
        EnvironmentUnableError: torchrun cannot be started.
    """
    started_s = time.time()
    token = options.servers.token(options.nnodes) if server_sync(plan) is not None else None
    log = options.out / "logs" / f"launcher-{options.node_rank}.log"
    with log.open("wb") as stream:
        try:
            agent = subprocess.Popen(
                [sys.executable, "-m", _AGENT, *_arguments(job, options, local_ranks)],
                env=environment(plan, local_ranks, token),
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
                start_new_session=True,
            )
        except OSError as error:
            raise EnvironmentUnableError(
                f"cannot start torchrun: {error}", hint="check the Python installation"
            ) from error
        try:
            with view:
                status = agent.wait()
        except BaseException:
            _end(agent)
            raise
    if status:
        raise diagnose(options.out, plan.world_size, {}, since_s=started_s)


def _end(agent: subprocess.Popen[bytes]) -> None:
    """End the agent; its workers are told to die with it."""
    agent.send_signal(signal.SIGTERM)
    try:
        agent.wait(timeout=_TERM_GRACE_S)
    except subprocess.TimeoutExpired:
        agent.kill()
        agent.wait()
