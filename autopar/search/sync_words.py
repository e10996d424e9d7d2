"""What to know about sync modes that change the mathematics, as warnings of a search."""

from __future__ import annotations

from autopar.cluster import Cluster
from autopar.results import RankedPlan
from autopar.search.options import EXACT_MODES, SearchOptions
from autopar.sync import parse_sync


def sync_warnings(options: SearchOptions, cluster: Cluster, best: RankedPlan) -> tuple[str, ...]:
    """Named modes that were left out, that objectives do not judge, and a best plan of that kind.

    Args:
        options: What was asked.
        cluster: Where.
        best: The recommended plan.
    """
    modes = options.sync_modes()
    if options.only_runnable(cluster):
        left = [mode for mode in modes if mode not in EXACT_MODES]
        if not left:
            return ()
        return (f"not among the plans, as autopar run has all_reduce only: {', '.join(left)}",)
    warnings = []
    changing = [mode for mode in modes if not parse_sync(mode).exact]
    if changing and options.objective != "time-to-target":
        warnings.append(
            f"{', '.join(changing)} change the mathematics of a step, which objective "
            f"'{options.objective}' does not count: time-to-target does"
        )
    if not parse_sync(best.plan.sync).exact:
        warnings.append(_changed(best))
    return tuple(warnings)


def _changed(best: RankedPlan) -> str:
    sync, steps = parse_sync(best.plan.sync), best.price.steps_multiplier
    sources = "; ".join(item.citation for item in sync.literature)
    assumed = f"{steps.source}; {sources}" if steps.source == "assumed" else steps.source
    return (
        f"the best plan changes the mathematics ({sync.name}, {sync.semantics}): "
        f"{steps.value:.3g} times the steps to the same loss, "
        f"{steps.low:.3g} to {steps.high:.3g} ({assumed})"
    )
