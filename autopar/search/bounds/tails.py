"""What follows the last backward of a rank at least: synchronisation and optimizer."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from autopar.search.bounds.links import RATES
from autopar.search.space.columns import Columns

if TYPE_CHECKING:
    from autopar.search.bounds.rows import Rows

Array = npt.NDArray[np.float64]
Indices = npt.NDArray[np.intp]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class Tails:
    """Seconds of many groups ``[group, choice]``.

    Attributes:
        rows: Devices, elements and ranks of groups.
        columns: The groups.
        zero: Sharding level of each choice.
        offload: True where optimizer state lives in host memory.
        plain: True where whole gradients are averaged in every step.
    """

    rows: Rows
    columns: Columns
    zero: Indices
    offload: Mask
    plain: Mask

    @cached_property
    def rates(self) -> Array:
        """Collective rates ``[group, rate]``, in the order of :data:`RATES`."""
        return self.rows.links.all_rates(self.columns)

    def rate(self, name: str) -> Array:
        """One of the rates ``[group, 1]``."""
        return np.asarray(self.rates[:, RATES.index(name)][:, None])

    @cached_property
    def shards(self) -> Array:
        """Ranks that share out states ``[group]``."""
        c = self.columns
        return np.where(c.dp_shard > 1, c.dp_shard * c.cp, 1)

    @cached_property
    def elements(self) -> Array:
        """Different parameter elements on all pipeline ranks ``[group]``."""
        return self._by_split([self.rows.elements(split) for split in self.columns.splits])

    @cached_property
    def _dense(self) -> Array:
        """Those that are certainly synchronised as dense ones ``[group]``."""
        works = [self.rows.model.work(split) for split in self.columns.splits]
        dense = self._by_split([work.parameters.sum() for work in works])
        experts = self._by_split([work.experts.sum() for work in works])
        return np.maximum(0.0, np.minimum(dense, self.elements - experts))

    def _by_split(self, values: list[float]) -> Array:
        return np.array(values, dtype=float)[self.columns.split]

    @cached_property
    def optimizer_per_element(self) -> Array:
        """Least optimizer seconds per element."""
        per_element = self.columns.once(
            (self.columns.world,), lambda group: self.rows.world(group.world).optimizer_s
        )
        shares = np.where(self.zero[None, :] >= 1, self.shards[:, None], 1.0)
        return np.asarray(per_element[:, self.offload.astype(int)] / shares)

    @cached_property
    def sync_per_element(self) -> Array:
        """Least synchronisation seconds per dense element."""
        sizes, zero = self.rows.model.sizes, self.zero[None, :]
        own = self.rate("bucket_replicas") * sizes.gradient / self.shards[:, None]
        scatter = self.rate("bucket_scatter") * sizes.gradient
        gather = self.rate("gather") * sizes.weight
        plain = np.where(
            zero == 0,
            self.rate("bucket_all_reduce") * sizes.gradient,
            own + np.where(zero == 1, scatter, 0.0) + np.where(zero <= 2, gather, 0.0),
        )
        # Other modes may send next to nothing in most steps.
        return np.where(self.plain[None, :], plain, 0.0)

    @cached_property
    def optimizer(self) -> Array:
        """Least optimizer seconds of an average rank."""
        elements = (self.elements / self.columns.pp)[:, None]
        return np.asarray(elements * self.optimizer_per_element)

    @cached_property
    def both(self) -> Array:
        """Least synchronisation and optimizer seconds of an average rank."""
        dense = (self._dense / self.columns.pp)[:, None]
        return np.asarray(dense * self.sync_per_element + self.optimizer)
