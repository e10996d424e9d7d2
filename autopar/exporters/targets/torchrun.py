"""torchrun: a shell script that holds the plan and runs it.

Runs ``autopar run``, whose engine is torchrun's agent and rendezvous (``--nnodes``,
``--rdzv-endpoint`` as in torch 2.11 to 2.13).
"""

from __future__ import annotations

from typing import ClassVar

from autopar.exporters.base import AbstractExport, Notes, Subject
from autopar.exporters.facts import facts
from autopar.exporters.writing import shell_plan

_USE = {
    True: "# On each host: NODE_RANK=0 RDZV_ENDPOINT=host0:29500 bash FILE [run options]\n",
    False: "# bash FILE [autopar run options such as --steps 50 --verify]\n",
}
FIND_AUTOPAR = 'read -r -a autopar <<< "${AUTOPAR:-autopar}"  # e.g. AUTOPAR="python -m autopar"\n'


class Torchrun(AbstractExport):
    """Script for one host, or the same script on each of several."""

    name: ClassVar[str] = "torchrun"
    written_for: ClassVar[str] = "bash and torchrun of torch 2.11 to 2.13"
    head: ClassVar[str] = "#!/usr/bin/env bash\n"
    rest: ClassVar[str] = "the script has no word for it"

    def body(self, subject: Subject, notes: Notes) -> str:
        """See :class:`AbstractExport`."""
        account(subject, notes)
        hosts = subject.hosts
        several = hosts.nodes > 1
        lines = [
            _USE[several] + "set -euo pipefail\n",
            FIND_AUTOPAR,
            'plan="$(mktemp "${TMPDIR:-/tmp}/autopar-plan.XXXXXX")"\n'
            "trap 'rm -f \"$plan\"' EXIT\n",
            shell_plan(subject.plan),
            f"# {hosts.nodes} host(s) x {hosts.ranks_per_node} rank(s)\n",
        ]
        if not several:
            return "\n".join([*lines, '"${autopar[@]}" run "$plan" "$@"\n'])
        return "\n".join(
            [
                *lines,
                _SEVERAL.format(nodes=hosts.nodes, last=hosts.nodes - 1, hash=subject.plan.hash),
            ]
        )


_SEVERAL = """\
: "${{NODE_RANK:?number of this host, 0 to {last}}}"
: "${{RDZV_ENDPOINT:?HOST:PORT of host 0, the same on every host}}"
"${{autopar[@]}}" run "$plan" --nnodes {nodes} --node-rank "$NODE_RANK" \\
    --rdzv-endpoint "$RDZV_ENDPOINT" --out "reports/run-{hash}" "$@"
"""


def account(subject: Subject, notes: Notes) -> None:
    """The account of a script that holds the whole plan: only what ``run`` cannot do is lost."""
    plan = subject.plan
    for key in facts(plan):
        notes.keep(key, "plan")
    if plan.task.target is None:
        notes.lose(
            "task",
            f"the plan names no target to build '{plan.task.name}' from: profile the task by "
            "`path/file.py:function`, or run it from Python",
        )
    elif not plan.task.target.startswith("zoo:"):
        notes.lose(
            "task", f"every host needs '{plan.task.target}', which the script does not carry"
        )
    if plan.offload:
        notes.lose("offload", "`autopar run` refuses it: set offload to false in the plan")
    if plan.precision.startswith("float8"):
        notes.lose("precision", "`autopar run` refuses float8: plan with --precision bfloat16")
    for key, reason in subject.hosts.doubts:
        notes.lose(key, reason)
