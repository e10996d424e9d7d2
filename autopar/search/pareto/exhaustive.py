"""Pareto sets by elimination: every point that bounds cannot rule out is priced."""

from __future__ import annotations

import numpy as np

from autopar.search.bounds.quick import QuickBounds
from autopar.search.pareto.front import Vectors, covered
from autopar.search.pareto.members import Members, Outcome
from autopar.search.space.build import Space
from autopar.search.space.point import Point

_AT_ONCE = 64
"""Points priced between two looks at which others are left."""


def exhaust(members: Members, space: Space) -> Outcome:
    """Price every point whose vector of lower bounds no priced plan covers.

    A plan is at least as large as its point's bounds in every objective, so a point whose bounds
    are covered has nothing to add. A point counts with the stage boundaries (and recompute
    levels, where open) that are best for one of the objectives; compromises between those are not
    in the set.
    """
    points, bounds = bounded_points(members, space)
    while len(points):
        left = ~members.covers(bounds)
        points = [point for point, keep in zip(points, left, strict=True) if keep]
        bounds = bounds[left]
        # The most promising ones first: they rule out most of the others.
        scale = np.abs(bounds).mean(axis=0) if len(bounds) else 1.0
        order = np.argsort((bounds / np.where(scale > 0, scale, 1.0)).sum(axis=1))
        some, rest = order[:_AT_ONCE], order[_AT_ONCE:]
        for index in some:
            if not members.covers(bounds[index : index + 1])[0]:
                members.explore(points[index])
        points, bounds = [points[i] for i in rest], bounds[rest]
    return Outcome(
        complete=True, resolution=0.0, open_bounds=np.zeros((0, len(members.objectives)))
    )


def bounded_points(members: Members, space: Space) -> tuple[list[Point], Vectors]:
    """The points that may fit, and their lower bounds ``[point, objective]``."""
    quick = [QuickBounds(members.model, question) for question in members.questions]
    reasons = quick[0].groups(space.columns)[1]
    groups = [g for g, reason in zip(space.groups, reasons, strict=True) if reason is None]
    found = [each.variants(groups) for each in quick]
    points: list[Point] = []
    rows: list[Vectors] = []
    for position, group in enumerate(groups):
        misfits = found[0][position][1]
        open_ = np.flatnonzero(group.variants.valid & ~misfits)
        points += [group.point(group.variants.table.variants[i]) for i in open_]
        rows.append(np.stack([each[position][0][open_] for each in found], axis=1))
    count = len(members.objectives)
    return points, np.concatenate(rows) if rows else np.zeros((0, count))


def open_bounds(members: Members, space: Space) -> Vectors:
    """Bounds of the groups of points that no priced plan covers, one vector per group."""
    columns, fits = [], np.ones(len(space.groups), dtype=bool)
    for question in members.questions:
        bounds, reasons = QuickBounds(members.model, question).groups(space.columns)
        fits &= np.array([reason is None for reason in reasons], dtype=bool)
        columns.append(bounds)
    vectors = np.stack(columns, axis=1)[fits]
    return vectors[~covered(vectors, members.vectors)]
