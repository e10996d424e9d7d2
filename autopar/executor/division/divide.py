"""All passes that a plan asks for, in order.

Sequences are divided first: the rules of that pass see the model's own ops with whole heads and
vocabularies. Columns come next; of context parallelism they meet a few calls, which work on a
rank's heads as on all of them. Experts come last.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from autopar.executor.division.collectives import Collectives
from autopar.executor.division.context import divide_sequences
from autopar.executor.division.editor import Divided, whole
from autopar.executor.division.expert import divide_experts
from autopar.executor.division.tensor import divide_columns
from autopar.executor.lowering import Context
from autopar.plans import Stage
from autopar.strategies import Split
from autopar.trace import TracedTask


def divide(traced: TracedTask, context: Context) -> Divided:
    """The graph that one rank of a plan runs.

    Args:
        traced: The graph of the whole model; each rank traces its own.
        context: The run: its plan, groups and traffic.

    Raises:
        InputError: The graph cannot be divided so; names the op and why.
    """
    divided, groups = whole(traced), context.groups
    if context.plan.mesh.cp > 1:
        calls = Collectives(groups.cp, context.traffic)
        divided = divide_sequences(divided, calls, context.warnings)
    if context.plan.mesh.tp > 1:
        divided = divide_columns(
            divided,
            Collectives(groups.tp, context.traffic),
            traced=traced,
            split=Split(
                tp=context.plan.mesh.tp,
                sequence_parallel=context.plan.sequence_parallel,
                cp=context.plan.mesh.cp,
            ),
            warnings=context.warnings,
        )
    if context.plan.mesh.ep > 1:
        divided = divide_experts(divided, Collectives(groups.ep, context.traffic))
    return divided


def translated(divided: Divided, stages: Sequence[Stage]) -> list[Stage]:
    """A plan's stages with ranges of this rank's nodes instead of the plan's ops."""
    return [
        replace(
            stage,
            first_op=divided.places[stage.first_op],
            stop_op=divided.places[stage.stop_op],
            recompute=tuple(divided.span(*pair) for pair in stage.recompute),
            selective=tuple(divided.span(*pair) for pair in stage.selective),
            units=tuple(divided.span(*pair) for pair in stage.units),
        )
        for stage in stages
    ]
