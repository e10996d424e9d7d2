"""What the formula leaves over near rows that were measured: kriging within one software stack.

A run of a shape that was measured before, at another depth, batch or number of devices, repeats
most of its error: kernels have cliffs no smooth formula knows. Gaussian process regression with
two kernels (shapes, plans) interpolates the residuals and shrinks to nothing away from them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from autopar.validation.rows.rows import Row

Array = npt.NDArray[np.float64]

SHAPE_SD, SHAPE_LENGTH = 0.08, 0.3
"""Size of a shape's own error, and the distance in log units over which it fades."""
PLAN_SD, PLAN_LENGTH = 0.05, 1.2
"""The same of a plan's."""
NOISE_SD = 0.03
"""Scatter of repeated runs."""
FREEDOM = 4.0
"""Degrees of freedom of the scatter: runs slow for no reason count little."""


def stack_of(row: Row) -> str:
    """Rows that share kernels: one framework on one kind of device."""
    return f"{row.framework}@{row.platform.device}"


def shape_features(row: Row) -> list[float]:
    """What decides a kernel's speed, logarithms."""
    s = row.shape
    counts = [s.hidden, row.seq, row.tp, row.micro_batch, s.ffn, s.head_dim, s.kv_heads, s.vocab]
    flags = [row.precision == "float8", row.precision == "float4", row.recompute == "full"]
    kinds = [s.experts > 0, row.sequence_parallel, row.zero == 3]
    logs = [float(x) for x in np.log(np.maximum(counts, 1))]
    return [*logs, *(2.0 * flag for flag in (*flags, *kinds))]


def plan_features(row: Row) -> list[float]:
    """What decides how well a plan runs, logarithms."""
    s = row.shape
    tokens = row.micro_batch * row.seq
    counts = [s.hidden, row.tp, tokens, row.pp, row.microbatches, row.devices, s.layers, row.dp]
    counts += [row.vpp, row.ep, row.cp]
    return [float(x) for x in np.log(np.maximum(counts, 1))]


@dataclass(frozen=True, kw_only=True)
class Stack:
    """Measured rows of one software stack.

    Attributes:
        shapes: Features ``[row, feature]``.
        plans: Features ``[row, feature]``.
        residuals: ``log(predicted) - log(measured)``.
        groups: Number of different models, devices and counts.
        weights: Inverse covariance times residual.
        inverse: Inverse covariance.
    """

    shapes: Array
    plans: Array
    residuals: Array
    groups: int
    weights: Array
    inverse: Array


class Residuals:
    """Interpolates residuals of log step time.

    Args:
        stacks: Measured rows by software stack.
    """

    def __init__(self, stacks: Mapping[str, Stack]) -> None:
        self.stacks = dict(stacks)

    @classmethod
    def of(cls, rows: Sequence[Row], residuals: Array) -> Residuals:
        """From measured rows and ``log(predicted) - log(measured)`` of each."""
        members: dict[str, list[int]] = {}
        for index, row in enumerate(rows):
            members.setdefault(stack_of(row), []).append(index)
        return cls(
            {
                name: stack_from(
                    _shapes([rows[i] for i in indices]),
                    _plans([rows[i] for i in indices]),
                    residuals[indices],
                    len({rows[i].group for i in indices}),
                )
                for name, indices in members.items()
            }
        )

    def groups(self, stack: str) -> int:
        """Measured groups of a software stack."""
        return self.stacks[stack].groups if stack in self.stacks else 0

    def correction(self, rows: Sequence[Row]) -> tuple[Array, Array]:
        """Expected residual of each row and its variance."""
        mean, variance = np.zeros(len(rows)), np.full(len(rows), SHAPE_SD**2 + PLAN_SD**2)
        members: dict[str, list[int]] = {}
        for index, row in enumerate(rows):
            members.setdefault(stack_of(row), []).append(index)
        for name, indices in members.items():
            stack = self.stacks.get(name)
            if stack is None:
                continue
            some = [rows[i] for i in indices]
            near = _kernel(_shapes(some), _plans(some), stack.shapes, stack.plans)
            mean[indices] = near @ stack.weights
            explained = np.einsum("ij,jk,ik->i", near, stack.inverse, near)
            variance[indices] -= explained
        return mean, np.maximum(variance, 0.0)


def _shapes(rows: Sequence[Row]) -> Array:
    return np.array([shape_features(row) for row in rows])


def _plans(rows: Sequence[Row]) -> Array:
    return np.array([plan_features(row) for row in rows])


def _kernel(shapes: Array, plans: Array, other_shapes: Array, other_plans: Array) -> Array:
    by_shape = SHAPE_SD**2 * np.exp(-_squared(shapes, other_shapes) / (2 * SHAPE_LENGTH**2))
    by_plan = PLAN_SD**2 * np.exp(-_squared(plans, other_plans) / (2 * PLAN_LENGTH**2))
    return np.asarray(by_shape + by_plan)


def _squared(a: Array, b: Array) -> Array:
    return np.asarray(
        np.maximum((a**2).sum(1)[:, None] + (b**2).sum(1)[None, :] - 2 * a @ b.T, 0.0)
    )


def stack_from(shapes: Array, plans: Array, residuals: Array, groups: int) -> Stack:
    """Solve for the weights; runs far from their neighbours count little (iterated Student)."""
    kernel = _kernel(shapes, plans, shapes, plans)
    noise = np.full(len(residuals), NOISE_SD**2)
    weights, inverse = np.zeros(len(residuals)), np.zeros_like(kernel)
    for _ in range(4):
        inverse = np.asarray(np.linalg.inv(kernel + np.diag(noise)), dtype=np.float64)
        weights = inverse @ residuals
        left = residuals - kernel @ weights
        noise = NOISE_SD**2 * (FREEDOM + left**2 / NOISE_SD**2) / (FREEDOM + 1)
    return Stack(
        shapes=shapes,
        plans=plans,
        residuals=residuals,
        groups=groups,
        weights=weights,
        inverse=inverse,
    )
