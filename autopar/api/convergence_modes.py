"""A sync mode with every seed: whether it reaches the loss, in how many steps and seconds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean

from autopar.api.convergence_goal import Goal
from autopar.api.convergence_probe import Probe
from autopar.core.errors import AutoparError, InputError, TrainingError
from autopar.core.estimate import Estimate
from autopar.core.learning import steps_to
from autopar.core.stats import median
from autopar.results import ConvergenceRow, RunRecord
from autopar.sync import parse_sync


def measure_mode(name: str, probe: Probe, goal: Goal) -> ConvergenceRow:
    """A mode with every seed."""
    refusal = _refusal(name, probe)
    semantics = parse_sync(name).semantics
    if refusal is not None:
        return ConvergenceRow(name=name, semantics=semantics, status="not run", reason=refusal)
    rare = _too_rare(name, goal)
    if rare is not None:
        return ConvergenceRow(name=name, semantics=semantics, status="too rare", reason=rare)
    records: list[RunRecord] = []
    for seed in range(probe.seeds):
        try:
            records.append(_run_to(name, probe, goal, seed))
        except TrainingError as error:
            return ConvergenceRow(
                name=name, semantics=semantics, status="not reached", reason=error.message
            )
        except AutoparError as error:
            return ConvergenceRow(
                name=name, semantics=semantics, status="not run", reason=error.message
            )
    steps = [steps_to(record.losses, goal.target, goal.window) for record in records]
    return row_of(name, records, steps, goal)


def _run_to(name: str, probe: Probe, goal: Goal, seed: int) -> RunRecord:
    """The shortest run of a mode that reaches the loss, else the longest one allowed.

    Raises:
        AutoparError: It failed.
    """
    lengths = goal.lengths(parse_sync(name), seed)
    for steps in lengths:
        record = probe.run(name, seed, steps)
        if steps_to(record.losses, goal.target, goal.window) is not None:
            break
    probe.told(name)
    return record


def _refusal(name: str, probe: Probe) -> str | None:
    """Why a mode cannot be measured here, else ``None``."""
    from autopar.executor.supported import check_supported
    from autopar.sync import SyncGroup

    sync = parse_sync(name)
    try:
        check_supported(probe.with_sync(name))
    except InputError as error:
        return error.message
    ranks = probe.plan.world_size
    return sync.check(SyncGroup(ranks=ranks, nodes=math.ceil(ranks / probe.node_size)))


def _too_rare(name: str, goal: Goal) -> str | None:
    """Why averages are too far apart to tell what they do on the way to the loss."""
    mode, steps = parse_sync(name).mode, min(goal.exact_steps)
    period = getattr(mode, "period", 1)
    if period <= steps / 2:
        return None
    return (
        f"it averages every {period} steps, exact training needs {steps:.0f} to the loss; "
        f"name a shorter period, {mode.name}:{max(1, int(steps / 8))}"
    )


def row_of(
    name: str, records: Sequence[RunRecord], steps: Sequence[float | None], goal: Goal
) -> ConvergenceRow:
    """Figures of a mode's runs."""
    times = [time for record in records for time in record.step_times_s]
    row = ConvergenceRow(
        name=name,
        semantics=parse_sync(name).semantics,
        status="measured",
        steps=tuple(steps),
        step_time_s=fmean(times),
        bytes_per_step=fmean(max(record.bytes_sent) for record in records),
    )

    reached = [found for found in steps if found is not None]
    if len(reached) < len(steps):
        missed = len(steps) - len(reached)
        reason = (
            f"{missed} of {len(steps)} runs do not reach loss {goal.target:.4g} within "
            f"{goal.slack:g} times the steps of exact training"
        )
        return replace(row, status="not reached", reason=reason)
    ratios = [found / own for found, own in zip(reached, goal.exact_steps, strict=True)]
    spent = [
        math.fsum(record.step_times_s[: math.ceil(found)])
        for record, found in zip(records, reached, strict=True)
    ]
    return replace(row, multiplier=_over_seeds(ratios), time_to_loss_s=_over_seeds(spent))


def _over_seeds(values: Sequence[float]) -> Estimate:
    """Median, least and most."""
    return Estimate(value=median(values), low=min(values), high=max(values), source="measured")
