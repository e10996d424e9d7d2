"""Pareto sets of spaces too large to price: NSGA-II, started from the best plans known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import numpy as np

from autopar.search.exhaustive import open_bounds
from autopar.search.members import Members
from autopar.search.pareto import Outcome
from autopar.search.point import Point
from autopar.search.space import PointGroup, Space
from autopar.search.study import quiet
from autopar.search.variants import Variant

if TYPE_CHECKING:
    import optuna

POPULATION = 40
"""Points of a generation."""
TRIALS = 600
"""Points looked at after the start: about five seconds for eight devices."""
GROUP_GENES = (
    "world",
    "pp",
    "tp",
    "cp",
    "ep",
    "sequence_parallel",
    "dp_shard",
    "microbatch_size",
)
"""Axes of a group, in the order they are decoded."""
VARIANT_GENES = tuple(field.name for field in fields(Variant))
"""Axes of a variant, in the order they are decoded."""
GENES = (*GROUP_GENES, *VARIANT_GENES)


@dataclass(frozen=True, kw_only=True)
class Code:
    """Points as fractions, one per axis: each picks among the values that earlier ones leave.

    Every vector of fractions is a point of the space, so no trial is wasted on meshes that do not
    divide the devices, and neighbours in a fraction are neighbours on its axis.

    Attributes:
        groups: Of the space.
    """

    groups: tuple[PointGroup, ...]

    def decode(self, fractions: Sequence[float]) -> Point:
        """The point of some fractions in ``[0, 1)``."""
        groups: Sequence[PointGroup] = self.groups
        for axis, fraction in zip(GROUP_GENES, fractions, strict=False):
            groups = _pick(groups, axis, fraction)
        group = groups[0]
        variants: Sequence[Variant] = group.variants.variants
        for axis, fraction in zip(VARIANT_GENES, fractions[len(GROUP_GENES) :], strict=True):
            variants = _pick(variants, axis, fraction)
        return group.point(variants[0])

    def encode(self, point: Point) -> list[float]:
        """Fractions that decode to a point of the space."""
        found: list[float] = []
        groups: Sequence[PointGroup] = self.groups
        for axis in GROUP_GENES:
            fraction, groups = _place(groups, axis, getattr(point, axis))
            found.append(fraction)
        variants: Sequence[Variant] = groups[0].variants.variants
        for axis in VARIANT_GENES:
            fraction, variants = _place(variants, axis, getattr(point, axis))
            found.append(fraction)
        return found


def _values[Item: (PointGroup, Variant)](items: Sequence[Item], axis: str) -> list[int | str]:
    return sorted({getattr(item, axis) for item in items})


def _pick[Item: (PointGroup, Variant)](
    items: Sequence[Item], axis: str, fraction: float
) -> list[Item]:
    values = _values(items, axis)
    value = values[min(int(fraction * len(values)), len(values) - 1)]
    return [item for item in items if getattr(item, axis) == value]


def _place[Item: (PointGroup, Variant)](
    items: Sequence[Item], axis: str, wanted: int | str | bool
) -> tuple[float, list[Item]]:
    if axis == "sequence_parallel":
        wanted = wanted == "on"
    values = _values(items, axis)
    fraction = (values.index(wanted) + 0.5) / len(values)
    return fraction, [item for item in items if getattr(item, axis) == wanted]


def evolve(members: Members, space: Space) -> Outcome:
    """Search with NSGA-II from the members that are there; all it prices joins them."""
    study, code = _study(members, space), Code(groups=space.groups)
    known: dict[Point, tuple[float, ...] | None] = {}
    seeds = [code.encode(member.point) for member in members.kept]
    with quiet():
        for genes in seeds[:POPULATION]:
            study.enqueue_trial(dict(zip(GENES, genes, strict=True)))
        for _ in range(TRIALS + min(len(seeds), POPULATION)):
            trial = study.ask()
            point = code.decode([trial.suggest_float(gene, 0.0, 1.0) for gene in GENES])
            if point not in known:
                known[point] = _price(members, point)
            values = known[point]
            trial.set_user_attr("fits", values is not None)
            # Values of a point that does not fit are never compared: the constraint comes first.
            study.tell(trial, values if values is not None else [0.0] * len(members.objectives))
    return Outcome(complete=False, resolution=0.0, open_bounds=open_bounds(members, space))


def _study(members: Members, space: Space) -> optuna.Study:
    import optuna

    sampler = optuna.samplers.NSGAIISampler(
        population_size=POPULATION,
        seed=members.options.seed,
        constraints_func=lambda trial: (0.0 if trial.user_attrs["fits"] else 1.0,),
    )
    with quiet():
        return optuna.create_study(
            sampler=sampler, directions=["minimize"] * len(members.objectives)
        )


def _price(members: Members, point: Point) -> tuple[float, ...] | None:
    """Objectives with the most promising stage boundaries; ``None`` when nothing fits."""
    searches = members.searches(point)
    bounds = [search.lower_bound() for search in searches]
    if not np.isfinite(bounds).all():
        return None
    found = searches[0].solve(first=True)
    if found.cuts is None:
        return None
    member = members.add(point, found.cuts, found.levels)
    return member.values if member is not None else None
