"""Samplers and splits by name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from autopar.core.registry import Entry, Registry

if TYPE_CHECKING:
    from autopar.executor.sampling.base import Sampler, Split

_HERE = "autopar.executor.sampling"

SAMPLERS: Registry[type[Sampler]] = Registry(
    "sampler",
    {
        "shuffle": Entry(f"{_HERE}.shuffle:Shuffle", "every sample once per epoch"),
        "weighted": Entry(f"{_HERE}.weighted:Weighted", "drawn by weight, for skewed classes"),
        "bucketed": Entry(f"{_HERE}.bucketed:Bucketed", "batches of samples of similar length"),
    },
)
"""Which samples of ``task.dataset`` a step trains on."""

SPLITS: Registry[type[Split]] = Registry(
    "data split",
    {
        "random": Entry(f"{_HERE}.random:RandomSplit", "another permutation at every step"),
        "contiguous": Entry(f"{_HERE}.contiguous:ContiguousSplit", "one block per replica"),
        "shard": Entry(f"{_HERE}.shard:ShardSplit", "dealt out one by one"),
        "balanced": Entry(f"{_HERE}.balanced:BalancedSplit", "equal tokens in all microbatches"),
    },
)
"""Which replica takes which samples of a global batch."""
