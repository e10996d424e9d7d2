"""pareto_search(): the plans that no other plan beats in every objective.

Three engines:

- ``sweep``: repeated proved searches for one objective, each under a tighter memory limit
  (the epsilon-constraint method, Haimes et al. 1971) and, where money counts beside time, each on
  a fixed number of devices, since the price of a step is then its time times a constant. Complete
  up to a step in memory (:data:`RESOLUTION`) on spaces of any size.
- ``exhaustive``: every point whose bounds no priced plan dominates is priced with the stage
  boundaries that are best for each objective. Complete over those.
- ``nsga2``: the genetic algorithm of Deb et al. 2002 as Optuna has it, started from the best
  plans of each objective. Not complete: the hypervolume that bounds leave open is reported.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from autopar.cluster import Cluster
from autopar.core.errors import InputError
from autopar.core.registry import did_you_mean
from autopar.cost import CostModel
from autopar.graph import GraphProfile
from autopar.results.pareto import ParetoPlan, ParetoProof, ParetoSet
from autopar.search.explain.infeasible import diagnose
from autopar.search.options import SearchOptions
from autopar.search.pareto.exhaustive import exhaust
from autopar.search.pareto.front import Vectors, hypervolume, knee
from autopar.search.pareto.members import Member, Members, Outcome
from autopar.search.pareto.optima import by_world, optimum, seed_members
from autopar.search.space.build import Space, build_space
from autopar.search.space.plans import rank_plan
from autopar.search.stages.goal import value_of

OBJECTIVES = ("time", "memory", "energy", "cost")
ENGINES = ("auto", "sweep", "exhaustive", "nsga2")
RESOLUTION = 0.05
"""Relative step of the memory limit of a sweep: no finer than predictions of memory are right."""
COARSE_RESOLUTION, LARGE_SPACE = 0.15, 1_000_000
"""The step in spaces with at least so many points, where each limit takes seconds."""
EXHAUSTIVE_POINTS = 10_000
"""Points up to which ``auto`` prices all that bounds leave open; at worst half a minute."""
_REFERENCE = 1.1
"""The hypervolume is measured below the worst values of the set times this."""


def parse_objectives(text: str | Sequence[str]) -> tuple[str, ...]:
    """Objectives of a list such as ``time,memory``.

    Raises:
        InputError: Unknown or repeated objective, or fewer than two.
    """
    names = tuple(text.split(",") if isinstance(text, str) else text)
    names = tuple(name.strip() for name in names)
    for name in names:
        if name not in OBJECTIVES:
            raise InputError(
                f"unknown objective '{name}' in a list of objectives",
                hint=did_you_mean(name, list(OBJECTIVES)),
            )
    if len(names) < 2 or len(set(names)) < len(names):
        raise InputError(
            f"'{','.join(names)}' is not a list of different objectives",
            hint="write it like time,memory",
        )
    return names


def pareto_search(
    profile: GraphProfile,
    cluster: Cluster,
    objectives: Sequence[str],
    options: SearchOptions | None = None,
    *,
    engine: str = "auto",
) -> ParetoSet:
    """The plans that no other plan of the space beats in every objective.

    On a mixed cluster ranks take the devices in the cluster's own order; other orders are not
    looked at, so the set is not complete.

    Args:
        profile: What is trained.
        cluster: Where.
        objectives: Two or more of :data:`OBJECTIVES`.
        options: Constraints; ``objective``, ``top`` and ``storage`` are not used.
        engine: One of :data:`ENGINES`.

    Raises:
        InputError: Unknown objective or engine, or a device lacks power or price figures.
        InfeasibleError: No plan satisfies the constraints.
    """
    began = time.perf_counter()
    names = parse_objectives(objectives)
    options = (options or SearchOptions()).resolved(cluster)
    options = replace(options, objective=names[0], top=1, storage=None)
    model = CostModel(profile, cluster, options.precision)
    space = build_space(profile, cluster, options)
    members = Members(model=model, options=options, objectives=names)
    chosen = choose_engine(names, space) if engine == "auto" else engine
    outcome = _run(chosen, members, space)
    if not members.kept:
        raise diagnose(model, options, space, relaxations=True)
    plans = tuple(_plan(member, members) for member in members.kept)
    vectors = np.array([list(plan.values.values()) for plan in plans])
    return ParetoSet(
        objectives=names,
        plans=plans,
        knee=knee(vectors),
        proof=_proof(chosen, vectors, outcome, members, space),
        search_time_s=time.perf_counter() - began,
    )


def choose_engine(objectives: tuple[str, ...], space: Space) -> str:
    """``sweep`` where it applies, else by the size of the space."""
    if sweepable(objectives):
        return "sweep"
    return "exhaustive" if space.priceable <= EXHAUSTIVE_POINTS else "nsga2"


def sweepable(objectives: tuple[str, ...]) -> bool:
    """True when all objectives but memory follow from one of them on a number of devices."""
    rest = set(objectives) - {"memory"}
    return rest <= {"time", "cost"} or len(rest) == 1


def _run(engine: str, members: Members, space: Space) -> Outcome:
    if engine == "sweep":
        if not sweepable(members.objectives):
            raise InputError(
                f"the sweep cannot weigh {' and '.join(members.objectives)}",
                hint="use the exhaustive or the nsga2 engine",
            )
        return sweep(members, space)
    if engine == "exhaustive":
        seed_members(members, space)
        return exhaust(members, space)
    if engine == "nsga2":
        from autopar.search.pareto.genetic import evolve  # needs Optuna, which is slow to import

        seed_members(members, space)
        return evolve(members, space)
    raise InputError(f"unknown engine '{engine}'", hint=did_you_mean(engine, list(ENGINES)))


def sweep(members: Members, space: Space) -> Outcome:
    """The fastest (or cheapest) plan under each of a falling series of memory limits.

    A plan that is left out was slower under the limit it fits, so one of the set is no slower and
    needs at most ``1 / (1 - resolution)`` times its memory.
    """
    step = COARSE_RESOLUTION if space.size >= LARGE_SPACE else RESOLUTION
    rest = [name for name in members.objectives if name != "memory"]
    per_world = {"time", "cost"} <= set(rest)
    left_open = [
        bounds
        for part in (by_world(space) if per_world else [space])
        for bounds in _limits(members, part, rest[0], step)
    ]
    return Outcome(
        complete=not left_open,
        resolution=step if "memory" in members.objectives else 0.0,
        open_bounds=np.array(left_open).reshape(-1, len(members.objectives)),
    )


def _limits(
    members: Members, space: Space, objective: str, step: float
) -> Iterator[tuple[float, ...]]:
    """Search under falling limits; yields bounds of what answers without a proof leave open."""
    options = replace(members.options, objective=objective)
    while True:
        best, bound = optimum(members.model, options, space)
        if best is None:
            if np.isfinite(bound):
                yield tuple(bound if n == objective else 0.0 for n in members.objectives)
            return
        member = members.add(best.point, best.cuts, best.levels)
        if member is None:
            return
        # Time and money of a number of devices are in proportion; memory is below the next limit.
        share = {name: 1 - step if name == "memory" else bound / best.value for name in OBJECTIVES}
        if bound < best.value:
            named = zip(members.objectives, member.values, strict=True)
            yield tuple(share[name] * value for name, value in named)
        if "memory" not in members.objectives:
            return
        used = member.values[members.objectives.index("memory")]
        high = used * members.model.memory.high_factor
        options = replace(options, max_memory_bytes=high * (1 - step))


def _plan(member: Member, members: Members) -> ParetoPlan:
    ranked = rank_plan(member.point, member.cuts, members.model, members.options, member.levels)
    values = {name: value_of(ranked.price, name) for name in members.objectives}
    return ParetoPlan(values=values, ranked=ranked)


def _proof(
    engine: str, vectors: Vectors, outcome: Outcome, members: Members, space: Space
) -> ParetoProof:
    reference = vectors.max(axis=0) * _REFERENCE
    box = float(np.prod(reference - vectors.min(axis=0)))
    possible = np.concatenate((vectors, outcome.open_bounds))
    if outcome.resolution and "memory" in members.objectives:
        possible = possible.copy()
        possible[:, members.objectives.index("memory")] *= 1 - outcome.resolution
    return ParetoProof(
        engine=engine,
        complete=outcome.complete and members.model.cluster.uniform,
        resolution=outcome.resolution,
        space=space.size,
        priced=members.priced,
        open=len(outcome.open_bounds),
        hypervolume=hypervolume(vectors, reference) / box,
        hypervolume_bound=hypervolume(possible, reference) / box,
    )
