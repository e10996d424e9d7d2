"""Slurm: a batch script that runs the plan on the job's nodes.

``#SBATCH`` options and variables as in the manual pages of Slurm 20.11 (sbatch, srun, scontrol).
From 22.05 on ``srun`` no longer takes ``--cpus-per-task`` from the job, so it is given again.
"""

from __future__ import annotations

import re
from typing import ClassVar

from autopar.exporters.base import AbstractExport, Notes, Subject
from autopar.exporters.targets.torchrun import FIND_AUTOPAR, account
from autopar.exporters.writing import shell_plan


class Slurm(AbstractExport):
    """Batch script: one task a node, whose torchrun agent starts that node's ranks."""

    name: ClassVar[str] = "slurm"
    written_for: ClassVar[str] = "Slurm 20.11 and later"
    head: ClassVar[str] = "#!/usr/bin/env bash\n"
    rest: ClassVar[str] = "the script has no word for it"

    def body(self, subject: Subject, notes: Notes) -> str:
        """See :class:`AbstractExport`."""
        account(subject, notes)
        hosts, plan = subject.hosts, subject.plan
        options = [
            f"--job-name=autopar-{_word(plan.task.name)}",
            f"--nodes={hosts.nodes}",
            f"--ntasks={hosts.nodes}",
            "--ntasks-per-node=1",
        ]
        if hosts.accelerators:
            options.append(f"--gpus-per-node={hosts.ranks_per_node}")
        srun = "srun"
        if plan.threads is not None:
            cores = f"--cpus-per-task={hosts.ranks_per_node * plan.threads}"
            options.append(cores)
            srun = f"srun {cores}"
        options += ["--exclusive", "--output=autopar-%j.log"]
        return "\n".join(
            [
                "".join(f"#SBATCH {option}\n" for option in options),
                "# sbatch FILE [autopar run options such as --steps 50 --verify]\n"
                "# Add what your site asks for: --partition, --account, --time.\n"
                "# The folder you submit from is shared by the nodes: plan and results go there.\n"
                "set -euo pipefail\n",
                FIND_AUTOPAR,
                'plan="$PWD/autopar-plan-$SLURM_JOB_ID.json"\n' + shell_plan(plan),
                (_ONE if hosts.nodes == 1 else _SEVERAL).format(srun=srun, nodes=hosts.nodes),
            ]
        )


_ONE = """\
{srun} "${{autopar[@]}}" run "$plan" "$@"
"""

_SEVERAL = """\
head_node="$(scontrol show hostnames "$SLURM_JOB_NODELIST" | sed -n 1p)"
endpoint="$head_node:$((20000 + SLURM_JOB_ID % 20000))"
# One task a node; autopar run starts torchrun's agent with that node's ranks.
{srun} bash -c 'exec "$@" --node-rank "$SLURM_NODEID"' agent \\
    "${{autopar[@]}}" run "$plan" --nnodes {nodes} --rdzv-endpoint "$endpoint" \\
    --out "reports/run-$SLURM_JOB_ID" "$@"
"""


def _word(text: str) -> str:
    """A job name: letters, digits, dot and dash."""
    return re.sub(r"[^A-Za-z0-9.]+", "-", text).strip("-.")[:40] or "task"
