"""Seconds of every block for one microbatch: compute, and the collectives inside it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from autopar.cluster import Device
from autopar.cluster.overhead import ShardOverhead
from autopar.core.arrays import distinct_places
from autopar.cost.communication.collectives import CommunicationModel
from autopar.cost.communication.groups import Group
from autopar.cost.communication.ranks import Shapes
from autopar.cost.computation.compute import ComputeModel
from autopar.cost.computation.roofline import Phases
from autopar.cost.states import ParameterBytes
from autopar.cost.work import StageWork, Vector


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockSeconds:
    """Seconds per block for one microbatch; collectives that do not hide are inside.

    Attributes:
        forward: Forward.
        backward: Backward.
        weight: Part of backward that only weight gradients need.
        selective: Extra time when the cheap ops are computed again.
        full: Extra time when the whole block is computed again.
        forward_collective: Part of forward that is exposed communication.
        backward_collective: The same of backward.
        full_collective: The same of ``full``.
    """

    forward: Vector
    backward: Vector
    weight: Vector
    selective: Vector
    full: Vector
    forward_collective: Vector
    backward_collective: Vector
    full_collective: Vector


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """Groups that the collectives inside a stage run in; equal ones give equal seconds.

    Attributes:
        tp: Tensor parallel groups.
        cp: Context parallel groups.
        ep: Expert parallel groups.
        gather: Groups that gather parameters before each use (ZeRO-3), empty when none does.
        scatter: Groups that share out gradients in each backward (ZeRO-2 and 3).
        eager: Ranks run the user's own module, not the traced ops.
        world: Ranks of the plan; equal groups run their collectives at the same time.
        zero: What is shared out.
        casts: Weights are float32 on the rank, so that autocast casts them. False where a bound is
            to hold for ranks that share out weights and for those that do not.
        shards: What sharding costs beside bytes, ``None`` when not measured.
    """

    tp: Shapes
    cp: Shapes
    ep: Shapes
    gather: Shapes = ()
    scatter: Shapes = ()
    eager: bool = False
    world: int = 1
    zero: int = 0
    casts: bool = False
    shards: ShardOverhead | None = None

    @property
    def unshared(self) -> Surroundings:
        """The same of ranks that share out nothing."""
        return replace(self, gather=(), scatter=(), zero=0, casts=False, shards=None)

    def many(
        self, communication: CommunicationModel, kind: str, sizes_bytes: Vector, group: Group
    ) -> Vector:
        """Collectives of a group while its equals run theirs; never less than alone."""
        alone = communication.many(kind, sizes_bytes, group)
        together = self.world // max(group.ranks, 1)
        if together < 2:
            return alone
        return np.maximum(alone, communication.many(kind, sizes_bytes, group, together))


@dataclass(frozen=True, slots=True, kw_only=True)
class Computing:
    """Seconds per block for one microbatch where ranks share out nothing.

    Attributes:
        forward: Forward, with the collectives between its ops.
        backward: Backward, with the collectives between its ops.
        forward_alone: Forward without them.
        backward_alone: Backward without them.
        weight: Part of ``backward_alone`` that only weight gradients need.
        selective: Part of ``forward_alone`` that selective recompute does again.
    """

    forward: Vector
    backward: Vector
    forward_alone: Vector
    backward_alone: Vector
    weight: Vector
    selective: Vector

    def row(self, index: int) -> Computing:
        """One of several microbatch sizes."""
        return self.each(lambda values: values[index])

    def each(self, change: Callable[[Vector], Vector]) -> Computing:
        """With every array changed alike."""
        return Computing(**{name: change(getattr(self, name)) for name in self.__slots__})


def computing_seconds(
    work: StageWork,
    samples: int | Vector,
    device: Device,
    busy: int,
    compute: ComputeModel,
    communication: CommunicationModel,
    around: Surroundings,
    phases: Phases | None = None,
) -> Computing:
    """Compute, and the tensor, context and expert collectives that its ops wait for.

    Args:
        work: The blocks as divided.
        samples: Microbatch size, or a column of several: seconds are ``[size, block]`` then.
        device: Kind of device.
        busy: Busy devices on its host.
        compute: Seconds of compute.
        communication: Seconds of collectives.
        around: Groups of the collectives.
        phases: Compute of the different blocks, where it is known.

    Raises:
        InputError: The profile has no time for the device.
    """
    sent_f, sent_b = _inside(work, samples, compute.activation_scale, communication, around)
    different = phases is not None
    if phases is None:
        phases = compute.phases(work, samples, device, busy, eager=around.eager)
        sent_f, sent_b = sent_f[..., work.places], sent_b[..., work.places]
    forward, backward = phases.forward(sent_f), phases.backward(sent_b)
    nothing = np.zeros_like(forward)
    alone_f, alone_b = phases.forward(nothing), phases.backward(nothing)
    found = Computing(
        forward=forward,
        backward=backward,
        forward_alone=alone_f,
        backward_alone=alone_b,
        weight=alone_b * phases.weight_share,
        selective=alone_f * phases.selective_share,
    )
    return found.each(lambda values: values[..., work.places]) if different else found


def block_seconds(
    computing: Computing,
    work: StageWork,
    device: Device,
    busy: int,
    compute: ComputeModel,
    communication: CommunicationModel,
    around: Surroundings,
    sizes: ParameterBytes,
) -> BlockSeconds:
    """Compute and exposed collectives of every block on one kind of device.

    Under autocast gradients of weights are cast, but for those that FSDP gathers narrow. ZeRO-3
    gathers run beside compute: a phase takes the longer of the two plus the calibrated share of
    the shorter one that contention exposes.

    Args:
        computing: What ranks do that share out nothing.
        work: The blocks as divided.
        device: Kind of device.
        busy: Busy devices on its host.
        compute: Seconds of compute.
        communication: Seconds of collectives.
        around: Groups of the collectives.
        sizes: Bytes per parameter element.
    """
    casts = compute.cast_seconds(work, device) if around.casts else 0.0
    forward, backward = computing.forward, computing.backward + casts
    share = compute.constants(device).gather_exposed
    gather = _over_shapes(
        communication, "all_gather", work.parameters * sizes.weight, around, around.gather
    )
    scatter = _over_shapes(
        communication, "reduce_scatter", work.parameters * sizes.gradient, around, around.scatter
    )
    if around.zero and around.shards is not None:
        forward, backward = _with_units(work, forward, backward, gather, scatter, around)
    elif around.gather or around.scatter:
        forward = _beside(forward, gather, share)
        backward = _beside(backward, gather + scatter, share)
    selective, full = compute.checkpoint_seconds(work, device, busy)
    return BlockSeconds(
        forward=forward,
        backward=backward,
        weight=np.minimum(backward, computing.weight),
        selective=np.minimum(computing.selective, forward) + selective,
        full=forward + full,
        forward_collective=forward - computing.forward_alone,
        backward_collective=backward - (computing.backward_alone + casts),
        full_collective=forward - computing.forward_alone,
    )


def _with_units(
    work: StageWork,
    forward: Vector,
    backward: Vector,
    gather: Vector,
    scatter: Vector,
    around: Surroundings,
) -> tuple[Vector, Vector]:
    """Phases of sharded blocks where the host's costs per unit were measured.

    These were measured with tiny messages, so of a collective what more bytes add comes on top.
    Every block is a unit. Overlap is in them: on a host whose ranks share cores there is little.
    """
    shards = around.shards
    assert shards is not None  # the caller looked
    weights = np.array([float(len(b.parameters)) for b in work.profile.blocks])
    units = (weights > 0).astype(float)
    visit, fetch, refetch, share = (
        cost.unit_s * units + cost.weight_s * weights
        for cost in (shards.visit, shards.gather, shards.regather or shards.gather, shards.scatter)
    )
    forward, backward = forward + visit, backward + visit
    if around.zero == 3:
        forward, backward = forward + fetch + gather, backward + refetch + gather
    if around.zero >= 2:
        backward = backward + share + scatter
    return forward, backward


def _beside(compute: Vector, collective: Vector, share: float) -> Vector:
    """Time of a phase with a collective beside it (DistributedDataParallel, FSDP prefetch)."""
    return np.maximum(compute, collective) + share * np.minimum(compute, collective)


def _inside(
    work: StageWork,
    samples: int | Vector,
    scale: float,
    communication: CommunicationModel,
    around: Surroundings,
) -> tuple[Vector, Vector]:
    """Seconds of the collectives in forward and in backward of each of the different blocks."""
    shapes = {"tp": around.tp, "cp": around.cp, "ep": around.ep}
    counts, blocks = np.shape(samples)[:1], len(work.unique)
    seconds = np.zeros((len(work.sent_by), *counts))
    for sent in work.sent:
        if shapes[sent.axis]:
            sizes = (sent.fixed[:, None] + sent.per_sample[:, None] * np.ravel(samples)) * scale
            sizes = sizes.reshape(-1, *counts)
            slowest = [around.many(communication, sent.kind, sizes, g) for g in shapes[sent.axis]]
            seconds[sent.places] = np.maximum.reduce(slowest)
    total = np.zeros((2 * blocks, *counts))
    np.add.at(total, work.sent_by, seconds)
    return total[:blocks].T, total[blocks:].T


def _over_shapes(
    communication: CommunicationModel,
    kind: str,
    sizes: Vector,
    around: Surroundings,
    shapes: Shapes,
) -> Vector:
    """Slowest shape's seconds per block; zeros without a group.

    Where costs per unit were measured, only what the bytes add to a message of almost none.
    """
    if not shapes:
        return np.zeros_like(sizes)
    values, inverse = distinct_places(sizes)
    least = np.ones(1)
    seconds = np.max([around.many(communication, kind, values, g) for g in shapes], axis=0)
    if around.shards is not None:
        fixed = max(float(around.many(communication, kind, least, g)[0]) for g in shapes)
        seconds = np.maximum(seconds - fixed, 0.0)
    return np.asarray(seconds)[inverse]
