"""search(): plans ranked and proved, on clusters of one machine or of several."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache

from autopar.cluster import Cluster
from autopar.core.errors import InfeasibleError
from autopar.graph import GraphProfile
from autopar.results import SearchResult
from autopar.schedules import SCHEDULES
from autopar.search.explain.embedding_words import embedding_warnings
from autopar.search.explain.sync_words import changing_modes, steps_paragraph, sync_warnings
from autopar.search.mixed_clusters.placed import find_placed
from autopar.search.options import EXACT_MODES, SearchOptions
from autopar.search.ordered import find_in_order
from autopar.sync import parse_sync


def search(
    profile: GraphProfile, cluster: Cluster, options: SearchOptions | None = None
) -> SearchResult:
    """The best plans of the space, with proof.

    Raises:
        InputError: Unknown axis, value, objective or sync mode.
        InfeasibleError: No plan satisfies the constraints.
    """
    asked = options or SearchOptions()
    return _with_steps(find(profile, cluster, asked, relaxations=True), profile, cluster, asked)


def _with_steps(
    found: SearchResult, profile: GraphProfile, cluster: Cluster, options: SearchOptions
) -> SearchResult:
    """The result with a paragraph about steps to the same loss, where modes may change them.

    The best plan of the other kind, which says from what multiplier on the choice flips, takes a
    search of its own.
    """
    changing = changing_modes(profile, options)
    if options.objective != "time-to-target" or not changing:
        return found
    exact = parse_sync(found.best.plan.sync).exact
    others = ",".join(changing) if exact else "exact"
    asked = replace(options, sync=others, top=1, storage=None)
    try:
        rival = find(profile, cluster, asked, relaxations=False).best
    except InfeasibleError:
        rival = None
    words = steps_paragraph(found.best, rival, profile)
    return replace(found, explanation=(*found.explanation, words))


def find(
    profile: GraphProfile, cluster: Cluster, options: SearchOptions, *, relaxations: bool
) -> SearchResult:
    """:func:`search`; without ``relaxations`` an infeasible search only says what is lacking."""
    with uncollected():
        return _find(profile, cluster, options, relaxations=relaxations)


@contextmanager
def uncollected() -> Iterator[None]:
    """Leave cyclic garbage for later: passes over the tables of a search find next to none."""
    active = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if active:
            gc.enable()


def _find(
    profile: GraphProfile, cluster: Cluster, options: SearchOptions, *, relaxations: bool
) -> SearchResult:
    _load()
    if not cluster.uniform:
        found = find_placed(profile, cluster, options, relaxations=relaxations)
    else:
        found = find_in_order(profile, cluster, options, relaxations=relaxations)
    about_sync = sync_warnings(options, profile, found.best)
    about_tables = embedding_warnings(profile, found.best)
    return replace(found, warnings=(*about_sync, *about_tables, *found.warnings))


@cache
def _load() -> None:
    """Import what searches look up by name; that takes time once in a process."""
    for name in SCHEDULES:
        SCHEDULES.load(name)
    parse_sync(EXACT_MODES[0])
