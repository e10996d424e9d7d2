"""Pareto sets of spaces too large to price: NSGA-II, started from the best plans known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np

from autopar.search.pareto.exhaustive import open_bounds
from autopar.search.pareto.members import Members, Outcome
from autopar.search.space.build import PointGroup, Space
from autopar.search.space.point import Point
from autopar.search.space.variants import Variant
from autopar.search.walk.study import quiet

if TYPE_CHECKING:
    import optuna

Item = TypeVar("Item")

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


class Code:
    """Points as fractions, one per axis: each picks among the values that earlier ones leave.

    Every vector of fractions is a point of the space, so no trial is wasted on meshes that do not
    divide the devices, and neighbours in a fraction are neighbours on its axis.

    Args:
        groups: Of the space.
    """

    def __init__(self, groups: Sequence[PointGroup]) -> None:
        self._groups = _Branch(list(groups), GROUP_GENES)
        self._variants: dict[int, _Branch[Variant]] = {}

    def decode(self, fractions: Sequence[float]) -> Point:
        """The point of some fractions between 0 and 1."""
        group = self._groups.pick(fractions[: len(GROUP_GENES)])
        return group.point(self._of(group).pick(fractions[len(GROUP_GENES) :]))

    def encode(self, point: Point) -> list[float]:
        """Fractions that decode to a point of the space."""
        on = point.sequence_parallel == "on"
        wanted = [on if a == "sequence_parallel" else getattr(point, a) for a in GROUP_GENES]
        fractions, group = self._groups.place(wanted)
        more, _ = self._of(group).place([getattr(point, a) for a in VARIANT_GENES])
        return fractions + more

    def _of(self, group: PointGroup) -> _Branch[Variant]:
        key = id(group.variants)
        if key not in self._variants:
            self._variants[key] = _Branch(list(group.variants.variants), VARIANT_GENES)
        return self._variants[key]


class _Branch(Generic[Item]):
    """Items by their value on the first of some axes, each part branching on the next one."""

    def __init__(self, items: list[Item], axes: Sequence[str]) -> None:
        self.items = items
        self.axes = axes
        self._parts: dict[Any, _Branch[Item]] | None = None

    @property
    def parts(self) -> dict[Any, _Branch[Item]]:
        """Value -> items that have it, in rising order; made when it is looked at."""
        if self._parts is None:
            found: dict[Any, list[Item]] = {}
            for item in self.items:
                found.setdefault(getattr(item, self.axes[0]), []).append(item)
            self._parts = {v: _Branch(found[v], self.axes[1:]) for v in sorted(found)}
        return self._parts

    def pick(self, fractions: Sequence[float]) -> Item:
        """The item of one fraction per axis."""
        if not self.axes:
            return self.items[0]
        values = list(self.parts)
        value = values[min(int(fractions[0] * len(values)), len(values) - 1)]
        return self.parts[value].pick(fractions[1:])

    def place(self, wanted: Sequence[Any]) -> tuple[list[float], Item]:
        """Fractions of an item with some values, and the item."""
        if not self.axes:
            return [], self.items[0]
        values = list(self.parts)
        fractions, item = self.parts[wanted[0]].place(wanted[1:])
        return [(values.index(wanted[0]) + 0.5) / len(values), *fractions], item


def evolve(members: Members, space: Space) -> Outcome:
    """Search with NSGA-II from the members that are there; all it prices joins them."""
    study, code = _study(members), Code(space.groups)
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
            # Values of a point that does not fit are never compared: the constraint comes first.
            trial.set_constraint("fits in memory", 0.0 if values is not None else 1.0)
            study.tell(trial, values if values is not None else [0.0] * len(members.objectives))
    return Outcome(complete=False, resolution=0.0, open_bounds=open_bounds(members, space))


def _study(members: Members) -> optuna.Study:
    import optuna

    sampler = optuna.samplers.NSGAIISampler(population_size=POPULATION, seed=members.options.seed)
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
