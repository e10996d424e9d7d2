"""The plan of a duel, cut where a person who writes it by hand would cut the model."""

from __future__ import annotations

import itertools

from autopar.plans import Mesh, Plan, Stage
from autopar.trace import TracedTask
from autopar.validation.overhead.duels import SEED, Duel, Size

_BLOCK = "model.network.transformer.h."
_NORM = "model.network.transformer.ln_f."
"""Names of the weights of blocks, and of what comes after them."""


def make_plan(traced: TracedTask, duel: Duel, size: Size) -> Plan:
    """Our plan of a duel: stages and units begin where the model's blocks do."""
    mesh = Mesh(**duel.mesh)
    starts, stop = _block_starts(traced), len(traced.nodes)
    edges = [0, starts[len(starts) // 2], stop] if mesh.pp > 1 else [0, stop]
    units = [*starts, _head(traced)]
    return Plan(
        task=traced.reference,
        mesh=mesh,
        stages=tuple(
            Stage(
                first_op=edges[s],
                stop_op=edges[s + 1],
                pp=s,
                units=tuple(itertools.pairwise(units)) if mesh.dp_shard > 1 else (),
            )
            for s in range(mesh.pp)
        ),
        microbatches=duel.microbatches,
        microbatch_size=size.samples,
        threads=1,
        seed=SEED,
        **duel.changes,
    )


def _block_starts(traced: TracedTask) -> list[int]:
    """First op of each block."""
    starts: dict[str, int] = {}
    for index, name in _reads(traced):
        if name.startswith(_BLOCK):
            starts.setdefault(name.removeprefix(_BLOCK).split(".")[0], index)
    return list(starts.values())


def _head(traced: TracedTask) -> int:
    """First op after the last block."""
    return next(i for i, name in _reads(traced) if name.startswith(_NORM))


def _reads(traced: TracedTask) -> list[tuple[int, str]]:
    """``(op, weight that it reads)`` in order."""
    return [
        (index, str(source.target))
        for index, node in enumerate(traced.nodes)
        for source in node.all_input_nodes
        if source.op == "get_attr"
    ]
