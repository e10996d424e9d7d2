"""Which sync modes a search compares, and the fewest steps each may need."""

from __future__ import annotations

from autopar.graph import GraphProfile
from autopar.search.options import SearchOptions
from autopar.sync import SyncContext, SyncGroup, parse_sync

ANYBODY = SyncContext(group=SyncGroup(ranks=2))
"""What the literature says does not depend on the group."""


def sync_choices(profile: GraphProfile, options: SearchOptions) -> tuple[str, ...]:
    """Modes that compete: those asked for; with ``any`` those that were measured too.

    With ``any``, modes that did not reach the loss when they were measured are left out.
    """
    modes = options.sync_modes()
    if not compares_all(options):
        return modes
    measured = [name for item in profile.convergence for name in item.multipliers]
    missed = missed_modes(profile)
    return tuple(name for name in dict.fromkeys((*modes, *measured)) if name not in missed)


def compares_all(options: SearchOptions) -> bool:
    """True when every mode may compete."""
    return options.sync == "any" and options.objective == "time-to-target"


def missed_modes(profile: GraphProfile) -> dict[str, str]:
    """Modes that did not reach the loss wherever they were measured -> why."""
    reached = {name for item in profile.convergence for name in item.multipliers}
    missed = {name: why for item in profile.convergence for name, why in item.missed.items()}
    return {name: why for name, why in missed.items() if name not in reached}


def least_steps(profile: GraphProfile, mode: str) -> float:
    """Lower bound of the steps multiplier over all numbers of ranks."""
    known = [parse_sync(mode).steps_multiplier(ANYBODY)]
    known += [item.multipliers[mode] for item in profile.convergence if mode in item.multipliers]
    return min(estimate.value for estimate in known)
