"""What replicas hold and exchange: gradients, updated and gathered parameters, optimizer step."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from autopar.calibration.constants import Constants
from autopar.validation.step_time.columns import Columns

Array = npt.NDArray[np.float64]

LORA_SHARE = 0.003
"""Trainable part of the parameters with adapters."""


def block_parameters(x: Columns) -> Array:
    """Parameters of one block on one rank."""
    share = x.dense_share
    experts = x.experts * x.expert_ffn / x.ep * x.expert_width / x.hidden
    held = share * x.ffn + (1 - share) * (experts + x.shared_ffn)
    return x.hidden * (2 * x.query + 2 * x.keys + held * (1 + x.gates)) / x.tp


def shard_ranks(x: Columns) -> Array:
    """Ranks that share the sharded states: all replicas, or a part of them (HSDP)."""
    return np.minimum(x.zero_ranks, x.replicas)


def shard_rate(c: Constants, x: Columns) -> Array:
    """Rate of a ring over the ranks that share sharded states."""
    inside = shard_ranks(x) <= _in_node(x)
    return np.where(inside, x.intra_bytes_per_s * c.intra_share, _data_rate(c, x))


def _in_node(x: Columns) -> Array:
    """Places of a node for replicas: tensor parallel ranks are placed first."""
    return np.maximum(x.devices_per_node / x.tp, 1)


def _data_rate(c: Constants, x: Columns) -> Array:
    """Rate of a ring over the replicas; rings of different shards share a node's network."""
    inside = np.minimum(x.replicas, _in_node(x))
    shards = np.minimum(x.devices_per_node, x.devices) / inside
    intra = x.intra_bytes_per_s * c.intra_share
    inter = np.minimum(x.inter_bytes_per_s * c.inter_share / shards, intra)
    return np.where(x.replicas / inside > 1.01, inter, intra)


def _local_parameters(x: Columns) -> Array:
    """Trainable parameters of the fullest rank."""
    count = x.layers * block_parameters(x) / x.pp + x.vocab * x.hidden / x.tp
    return count * np.where(x.lora > 0, LORA_SHARE, 1.0)


def exchange_seconds(c: Constants, x: Columns) -> Array:
    """Reduce-scatter of gradients and gather of the updated parameters, once a step."""
    replicas = x.replicas
    parameters = _local_parameters(x)
    size, gradients = parameters * x.item_bytes, parameters * x.gradient_bytes
    rate = _data_rate(c, x)
    reduce = (replicas - 1) / replicas * gradients / rate
    ranks = shard_ranks(x)
    latency = c.zero_latency_s * np.where(ranks <= _in_node(x), 0.0, ranks)
    sharded = (ranks - 1) / ranks * size / shard_rate(c, x) + latency
    back = np.where(x.zero >= 2, reduce * x.item_bytes / x.gradient_bytes, reduce)
    gather = np.where(x.zero == 1, sharded, back)
    copies = replicas / ranks
    across = (
        2 * (copies - 1) / copies * gradients / ranks / (rate / np.minimum(ranks, _in_node(x)))
    )
    partly = np.where((x.zero == 3) & (copies > 1.01), across, 0.0)
    per_step = (replicas > 1) & ((x.zero < 3) | (x.gathers_once > 0))
    return np.where(per_step, reduce + gather, partly)


def optimizer_seconds(c: Constants, x: Columns) -> Array:
    """Update of the parameters whose optimizer state a rank holds."""
    ranks = np.where(x.zero >= 1, np.minimum(x.zero_ranks, x.replicas), 1.0)
    memory = x.memory_bytes_per_s * c.memory_efficiency
    return np.asarray(_local_parameters(x) / ranks * c.optimizer_bytes / memory)
