"""Step time of a transformer run in closed form, over arrays of rows.

The planner prices the ops of a traced graph and simulates the schedule; published rows have
neither, so :mod:`.block_time` writes the ops of a transformer block down and
this module replaces the simulator by the closed form of 1F1B. Both use the primitives and
constants of :mod:`autopar.calibration`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from autopar.calibration.constants import Constants
from autopar.calibration.kernels import exposed_sync_seconds, host_seconds
from autopar.validation.step_time.block_time import (
    block_seconds,
    block_work,
    head_seconds,
    tp_collective,
)
from autopar.validation.step_time.columns import Columns
from autopar.validation.step_time.replica_time import exchange_seconds, optimizer_seconds

Array = npt.NDArray[np.float64]

EMBEDDING_LAUNCHES = 15.0


@dataclass(frozen=True, slots=True, kw_only=True)
class StepParts:
    """Seconds of a step and what they consist of.

    Attributes:
        total_s: The step.
        block_s: Forward, backward and recompute of one block and microbatch.
        head_s: Head and loss of one microbatch.
        pipeline_s: All microbatches through the stages, bubble and messages included.
        sync_s: Exposed gradient exchange.
        optimizer_s: Parameter update.
    """

    total_s: Array
    block_s: Array
    head_s: Array
    pipeline_s: Array
    sync_s: Array
    optimizer_s: Array


def step_seconds(c: Constants, x: Columns) -> StepParts:
    """Step time of every row.

    Args:
        c: Constants, one entry per row or scalars.
        x: Rows.
    """
    work = block_work(c, x)
    collective = tp_collective(c, x)
    forward, backward, exposed_backward = block_seconds(c, x, work, collective)
    block = forward + backward
    head = head_seconds(c, x, collective)
    pipeline = _pipeline_seconds(c, x, block, head)
    part = c.sync_exposed * np.where(x.overlaps_sync > 0, c.sync_overlapped, 1.0)
    sync = exposed_sync_seconds(part, exchange_seconds(c, x), exposed_backward)
    optimizer = optimizer_seconds(c, x)
    nodes = np.maximum(x.devices / x.devices_per_node, 1)
    spread = 1 + c.straggler * (1 - 1 / nodes)
    total = (pipeline * spread + sync + optimizer) * c.overall + c.step_s
    return StepParts(
        total_s=np.asarray(total),
        block_s=np.asarray(block),
        head_s=head,
        pipeline_s=pipeline,
        sync_s=sync,
        optimizer_s=optimizer,
    )


def _embedding_seconds(c: Constants, x: Columns) -> Array:
    memory = x.memory_bytes_per_s * c.memory_efficiency
    size = 6 * x.tokens * x.hidden + 2 * x.vocab * x.hidden / x.tp
    return np.asarray(size * x.item_bytes / memory + host_seconds(c, EMBEDDING_LAUNCHES, x.tp))


def _pipeline_seconds(c: Constants, x: Columns, block: Array, head: Array) -> Array:
    """``m * longest + (sum - longest) / vpp`` plus messages and hand-shakes.

    In a mixed cluster the longest stage is one of the slowest device, the sum one of all.
    """
    embedding = _embedding_seconds(c, x)
    staged = x.pp > 1
    first = x.first * block + embedding + np.where(staged, 0.0, head)
    longest = np.where(
        staged, np.maximum(np.maximum(first, x.middle * block), x.last * block + head), first
    )
    total = np.where(staged, x.mean_time * (x.layers * block + embedding + head), first)
    total = np.maximum(total, longest)
    message = _message_seconds(c, x)
    m = x.microbatches
    steady = c.message_exposed * (m - 1) * x.vpp
    handshake = np.where(staged, c.microbatch_s, 0.0) * (m + x.pp - 1)
    return np.asarray(
        m * longest + (total - longest) / x.vpp + message * (x.pp - 1 + steady) + handshake
    )


def _message_seconds(c: Constants, x: Columns) -> Array:
    """One activation and one gradient between stages; a node's ranks share its network."""
    split = np.where(x.sequence_parallel > 0, x.tp, 1.0)
    across = x.tp * x.replicas >= x.devices_per_node
    senders = np.minimum(x.devices_per_node, x.tp * x.replicas)
    rate = c.message_share * np.where(across, x.inter_bytes_per_s / senders, x.intra_bytes_per_s)
    size = x.tokens * x.hidden * x.item_bytes / split
    return np.where(x.pp > 1, 2 * (size / rate + c.collective_latency_s), 0.0)
