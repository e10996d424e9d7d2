"""What to know about sync modes that change the mathematics."""

from __future__ import annotations

from autopar.core.estimate import Estimate
from autopar.graph import GraphProfile
from autopar.plans import Plan
from autopar.results import RankedPlan
from autopar.search.options import EXACT_MODES, SearchOptions
from autopar.search.space.sync_choice import compares_all, missed_modes, sync_choices
from autopar.sync import parse_sync

STEPS = "Steps. "
"""How the paragraph about steps to the same loss begins."""


def sync_warnings(
    options: SearchOptions, profile: GraphProfile, best: RankedPlan
) -> tuple[str, ...]:
    """Modes that were left out, that objectives do not judge, and a best plan of that kind.

    Args:
        options: What was asked.
        profile: What is trained.
        best: The recommended plan.
    """
    warnings = []
    if compares_all(options):
        missed = missed_modes(profile)
        warnings += [f"{name} is not among the plans: {why}" for name, why in missed.items()]
    elif options.sync == "any":
        warnings.append(
            f"--sync any compared {', '.join(EXACT_MODES)} only: what other modes save per step "
            f"they may lose in steps to the same loss, which objective '{options.objective}' does "
            "not count; use --objective time-to-target, or name the modes: "
            "--sync all_reduce,local_sgd"
        )
    changing = changing_modes(profile, options)
    if changing and options.objective != "time-to-target":
        warnings.append(
            f"{', '.join(changing)} change the mathematics of a step, which objective "
            f"'{options.objective}' does not count: time-to-target does"
        )
    if not parse_sync(best.plan.sync).exact:
        sync = parse_sync(best.plan.sync)
        warnings.append(
            f"the best plan changes the mathematics ({sync.name}, {sync.semantics}): "
            f"{steps_words(best, profile)}"
        )
    return tuple(warnings)


def changing_modes(profile: GraphProfile, options: SearchOptions) -> list[str]:
    """Modes among those compared that change the mathematics of a step."""
    return [mode for mode in sync_choices(profile, options) if not parse_sync(mode).exact]


def steps_words(item: RankedPlan, profile: GraphProfile) -> str:
    """Steps multiplier of a plan, with its range and where it is from."""
    steps = item.price.steps_multiplier
    return (
        f"{steps.value:.3g} times the steps to the same loss, {steps.low:.3g} to {steps.high:.3g} "
        f"({_source(item.plan, steps, profile)})"
    )


def _source(plan: Plan, steps: Estimate, profile: GraphProfile) -> str:
    """Who says so: the probe runs of this task, or publications."""
    sync = parse_sync(plan.sync)
    if steps.source == "assumed":
        return "; ".join(["assumed", *(item.citation for item in sync.literature)])
    ranks = plan.mesh.replicas * plan.mesh.cp
    words = [
        item.words
        for item in profile.convergence
        if item.ranks == ranks and sync.name in item.multipliers
    ]
    return f"{steps.source}: {'; '.join(words)}" if words else steps.source


def steps_paragraph(best: RankedPlan, rival: RankedPlan | None, profile: GraphProfile) -> str:
    """Whether changing the mathematics pays, and from what multiplier on it would not.

    Args:
        best: The chosen plan.
        rival: The best plan of the other kind: exact if the chosen one is not, and the reverse.
        profile: What is trained.
    """
    exact = parse_sync(best.plan.sync).exact
    if rival is None:
        kind = "changes the mathematics" if exact else "keeps the mathematics"
        return f"{STEPS}{best.plan.sync} is chosen; no plan that {kind} is possible."
    changing, plain = (rival, best) if exact else (best, rival)
    even = plain.price.step_time_s.value / changing.price.step_time_s.value
    name, steps = changing.plan.sync, changing.price.steps_multiplier
    text = f"{STEPS}{name} needs {steps_words(changing, profile)}. "
    if even <= 1:
        return (
            f"{text}Its best plan, {changing.name}, is no faster a step than {plain.name} either: "
            f"{plain.plan.sync} is chosen."
        )
    text += f"A step of {changing.name} is {even:.3g} times as fast as one of {plain.name}: "
    if exact:
        text += f"{name} would pay below {even:.3g} times the steps"
        doubt = steps.low < even
    else:
        text += f"{name} pays as long as it needs less than {even:.3g} times the steps"
        doubt = steps.high > even
    return f"{text}{', which its range does not rule out' if exact and doubt else ''}" + (
        ", and its range reaches beyond that." if doubt and not exact else "."
    )
