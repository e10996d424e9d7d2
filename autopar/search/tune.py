"""Continuous knobs of a plan that is found: the gradient bucket size, by Optuna's TPE sampler."""

from __future__ import annotations

from dataclasses import dataclass, replace

from autopar.cluster import Cluster
from autopar.core.errors import InputError
from autopar.core.units import format_bytes
from autopar.cost import CostModel, price
from autopar.graph import GraphProfile
from autopar.results import RankedPlan, SearchResult
from autopar.search.options import SearchOptions
from autopar.search.stages.goal import value_of

TRIALS = 40
"""Bucket sizes tried; pricing one takes a millisecond."""
LEAST_GAIN = 1e-3
"""Relative gain below which a plan keeps its bucket size."""
LEAST_BUCKET_BYTES = 2**20
"""Smaller buckets are all latency (Li et al. 2020, PyTorch Distributed, figure 8)."""


@dataclass(frozen=True, kw_only=True)
class Tuned:
    """A plan with another bucket size.

    Attributes:
        ranked: The plan and its price; the one given when no size is better by
            :data:`LEAST_GAIN`.
        before: Objective before.
        after: Objective now.
        trials: Sizes tried.
    """

    ranked: RankedPlan
    before: float
    after: float
    trials: int


def tuned_result(
    result: SearchResult, profile: GraphProfile, cluster: Cluster, options: SearchOptions
) -> tuple[SearchResult, str]:
    """The result with the best plan's gradient bucket size tuned, and a sentence that says so.

    Raises:
        InputError: The cluster is mixed: each plan is priced on an order of machines of its own.
    """
    if not cluster.uniform:
        raise InputError(
            f"plans on the mixed cluster '{cluster.name}' cannot be tuned",
            hint="leave out --tune",
        )
    model = CostModel(profile, cluster, result.best.plan.precision)
    tuned = tune_bucket(result.best, model, options)
    if tuned.trials == 0:
        words = "Bucket size: nothing to tune, the plan does not reduce gradients in buckets."
    elif tuned.ranked is result.best:
        words = (
            f"Bucket size: {format_bytes(tuned.ranked.plan.bucket_bytes)} stays, none of "
            f"{tuned.trials} others lowers {options.objective} by {LEAST_GAIN:.1%}."
        )
    else:
        sizes = [format_bytes(r.plan.bucket_bytes) for r in (result.best, tuned.ranked)]
        gain = 1 - tuned.after / tuned.before
        words = (
            f"Bucket size: {sizes[0]} to {sizes[1]} lowers {options.objective} by {gain:.2%}, the "
            f"best of {tuned.trials} sizes that Optuna's TPE sampler tried (not proved)."
        )
    return replace(result, best=tuned.ranked, top=(tuned.ranked, *result.top[1:])), words


def tune_bucket(
    ranked: RankedPlan, model: CostModel, options: SearchOptions, *, trials: int = TRIALS
) -> Tuned:
    """The bucket size that makes a plan's objective smallest.

    Small buckets start early and hide behind backward, large ones waste less latency; two of them
    take memory. The optimum of the sampler is not proved.

    Args:
        ranked: The plan; its own bucket size is tried first.
        model: Shared caches.
        options: Objective, memory limit and seed.
        trials: Sizes to try.
    """
    import optuna

    from autopar.search.walk.study import quiet

    plan = ranked.plan
    before = value_of(ranked.price, options.objective)
    most = max(2.0 * LEAST_BUCKET_BYTES, model.profile.parameter_bytes, float(plan.bucket_bytes))
    if plan.mesh.dp_replicate * plan.mesh.dp_shard * plan.mesh.cp < 2:
        return Tuned(ranked=ranked, before=before, after=before, trials=0)
    best, value = ranked, before
    with quiet():
        study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=options.seed))
        study.enqueue_trial({"bucket_bytes": float(plan.bucket_bytes)})
        for _ in range(trials):
            trial = study.ask()
            size = int(trial.suggest_float("bucket_bytes", LEAST_BUCKET_BYTES, most, log=True))
            draft = replace(plan, bucket_bytes=size)
            cost = price(draft, model.profile, model.cluster, model)
            limit = min(cost.capacity_bytes, options.max_memory_bytes or cost.capacity_bytes)
            if cost.peak_memory_bytes.high > limit:
                study.tell(trial, state=optuna.trial.TrialState.FAIL)
                continue
            found = value_of(cost, options.objective)
            study.tell(trial, found)
            if found < value:
                best = RankedPlan(plan=draft.with_predicted(cost.to_dict()), price=cost)
                value = found
    if value > before * (1 - LEAST_GAIN):
        return Tuned(ranked=ranked, before=before, after=before, trials=trials)
    return Tuned(ranked=best, before=before, after=value, trials=trials)
