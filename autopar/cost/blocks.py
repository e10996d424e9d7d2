"""Seconds of every block for one microbatch: compute, and the collectives inside it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from autopar.cluster import Device
from autopar.cost.collectives import CommunicationModel
from autopar.cost.compute import ComputeModel
from autopar.cost.ranks import Shapes
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

    def row(self, index: int) -> BlockSeconds:
        """One of several microbatch sizes."""
        return BlockSeconds(**{name: getattr(self, name)[index] for name in self.__slots__})


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """Groups that the collectives inside a stage run in; equal ones give equal seconds.

    Attributes:
        tp: Tensor parallel groups.
        cp: Context parallel groups.
        ep: Expert parallel groups.
        gather: Groups that gather parameters before each use (ZeRO-3), empty when none does.
        scatter: Groups that share out gradients in each backward (ZeRO-2 and 3).
    """

    tp: Shapes
    cp: Shapes
    ep: Shapes
    gather: Shapes = ()
    scatter: Shapes = ()


def block_seconds(
    work: StageWork,
    samples: int | Vector,
    device: Device,
    busy: int,
    compute: ComputeModel,
    communication: CommunicationModel,
    around: Surroundings,
    sizes: ParameterBytes,
) -> BlockSeconds:
    """Compute and exposed collectives of every block on one kind of device.

    Tensor, context and expert collectives stand in the way of the ops that follow them. ZeRO-3
    gathers run beside compute: a phase takes the longer of the two plus the calibrated share of
    the shorter one that contention exposes.

    Args:
        work: The blocks as divided.
        samples: Microbatch size, or a column of several: seconds are ``[size, block]`` then.
        device: Kind of device.
        busy: Busy devices on its host.
        compute: Seconds of compute.
        communication: Seconds of collectives.
        around: Groups of the collectives.
        sizes: Bytes per parameter element.

    Raises:
        InputError: The profile has no time for the device.
    """
    phases = compute.phases(work, samples, device, busy)
    comm = _Inside(work, samples, compute.activation_scale, communication, around)
    forward, backward = phases.forward(comm.forward), phases.backward(comm.backward)
    share = compute.constants(device).gather_exposed
    gather = _over_shapes(
        communication, "all_gather", work.parameters * sizes.weight, around.gather
    )
    scatter = _over_shapes(
        communication, "reduce_scatter", work.parameters * sizes.gradient, around.scatter
    )
    forward = _beside(forward, gather, share)
    backward = _beside(backward, gather + scatter, share)
    again = forward
    nothing = np.zeros_like(forward)
    computing_f, computing_b = phases.forward(nothing), phases.backward(nothing)
    checkpoint = compute.checkpoint_seconds(work, device, busy)
    return BlockSeconds(
        forward=forward,
        backward=backward,
        weight=np.minimum(backward, computing_b * phases.weight_share),
        selective=np.minimum(computing_f * phases.selective_share, again) + checkpoint,
        full=again + checkpoint,
        forward_collective=forward - computing_f,
        backward_collective=backward - computing_b,
        full_collective=again - computing_f,
    )


def _beside(compute: Vector, collective: Vector, share: float) -> Vector:
    """Time of a phase with a collective beside it (DistributedDataParallel, FSDP prefetch)."""
    return np.maximum(compute, collective) + share * np.minimum(compute, collective)


class _Inside:
    """Seconds of the collectives between the ops of each block."""

    def __init__(
        self,
        work: StageWork,
        samples: int | Vector,
        scale: float,
        communication: CommunicationModel,
        around: Surroundings,
    ) -> None:
        shapes = {"tp": around.tp, "cp": around.cp, "ep": around.ep}
        nothing = np.zeros(np.shape(samples)[:1])
        known: dict[int, int] = {}
        unique: dict[str, list[Vector]] = {"forward": [], "backward": []}
        for block in work.works:
            if id(block) in known:
                continue
            known[id(block)] = len(known)
            seconds = {"forward": nothing, "backward": nothing}
            for item in block.collectives:
                size = np.reshape(item.size_bytes.at(samples) * scale, nothing.shape)
                found = [communication.many(item.kind, size, g) for g in shapes[item.axis]]
                if found:
                    seconds[item.phase] = seconds[item.phase] + np.maximum.reduce(found)
            for phase, values in unique.items():
                values.append(seconds[phase])
        every = [known[id(block)] for block in work.works]
        self.forward = np.stack(unique["forward"], axis=-1)[..., every]
        self.backward = np.stack(unique["backward"], axis=-1)[..., every]


def _over_shapes(
    communication: CommunicationModel, kind: str, sizes: Vector, shapes: Shapes
) -> Vector:
    """Slowest shape's seconds per block; zeros without a group."""
    if not shapes:
        return np.zeros_like(sizes)
    values, inverse = np.unique(sizes, return_inverse=True)
    seconds = [
        max(communication.seconds(kind, float(value), group) for group in shapes)
        for value in values
    ]
    return np.array(seconds)[inverse]
