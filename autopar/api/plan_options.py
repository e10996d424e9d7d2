"""PlanOptions: what a user wants of a plan, in the words of the command line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from autopar.core.units import parse_bytes

if TYPE_CHECKING:
    from autopar.search import SearchOptions


@dataclass(frozen=True, kw_only=True)
class PlanOptions:
    """Constraints and preferences; the same for one cluster and for a choice of machines.

    Attributes:
        global_batch: Samples per optimizer step over all replicas.
        objective: ``time``, ``memory``, ``energy`` or ``cost``; several joined by commas also find
            ``.pareto``, the plans that no other beats in all of them, and the best plan is the
            best in the first.
        sync: ``exact``, ``any``, or mode names joined by commas (``local_sgd:8``).
        fix: ``axis=value`` constraints a plan must meet.
        forbid: ``axis=value`` combinations a plan must avoid.
        max_memory: Memory limit per device (``"20GiB"``), the device's own by default.
        precision: Compute dtype; ``auto`` is bfloat16, else float16 (float32 master weights),
            where every device has a peak for it, float32 elsewhere and on measured clusters.
        space: ``full``, ``runnable`` (what :func:`autopar.run` executes), or ``auto``: runnable
            on a measured cluster, full elsewhere.
        top: How many plans to rank.
        seed: Seed of the search.
        storage: Optuna storage URL or ``journal:FILE``; in memory by default. Processes with the
            same storage share priced points.
    """

    global_batch: int | None = None
    objective: str = "time"
    sync: str = "exact"
    fix: Sequence[str] = ()
    forbid: Sequence[str] = ()
    max_memory: str | int | None = None
    precision: str = "auto"
    space: str = "auto"
    top: int = 5
    seed: int = 0
    storage: str | None = None

    def objectives(self) -> tuple[str, ...]:
        """What to minimise, the most important first.

        Raises:
            InputError: The list names something unknown, or one thing twice.
        """
        if "," not in self.objective:
            return (self.objective,)
        from autopar.search.pareto.search import parse_objectives

        return parse_objectives(self.objective)

    def search(self, objective: str | None = None) -> SearchOptions:
        """What a search takes, for an objective of its own if one is given.

        Raises:
            InputError: A word does not parse.
        """
        from autopar.search import SearchOptions

        limit = self.max_memory
        return SearchOptions(
            global_batch=self.global_batch,
            objective=self.objective if objective is None else objective,
            sync=self.sync,
            fix=tuple(self.fix),
            forbid=tuple(self.forbid),
            max_memory_bytes=parse_bytes(limit) if isinstance(limit, str) else limit,
            precision=self.precision,
            top=self.top,
            seed=self.seed,
            storage=self.storage,
            space=self.space,
        )
