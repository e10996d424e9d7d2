"""Sync modes and compressions that run, by the names of :mod:`autopar.sync`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from autopar.core.registry import Entry, Registry
from autopar.executor.synchronising.base import Synchroniser
from autopar.sync import parse_sync

if TYPE_CHECKING:
    from autopar.executor.lowering import Context

_HERE = "autopar.executor.synchronising"

SYNCHRONISERS: Registry[type[Synchroniser]] = Registry(
    "sync mode",
    {
        "all_reduce": Entry(f"{_HERE}.all_reduce:AllReduce", "mean gradient, every step"),
        "local_sgd": Entry(f"{_HERE}.local:LocalSgd", "weights averaged periodically"),
        "post_local_sgd": Entry(f"{_HERE}.post_local:PostLocalSgd", "one after the other"),
        "hierarchical": Entry(f"{_HERE}.hierarchical:Hierarchical", "two levels"),
        "diloco": Entry(f"{_HERE}.diloco:DiLoCo", "outer Nesterov momentum"),
        "ps_sync": Entry(f"{_HERE}.servers:BesideServers", "parameter servers"),
        "ps_stale": Entry(f"{_HERE}.servers:BesideServers", "parameter servers"),
        "ps_async": Entry(f"{_HERE}.servers:BesideServers", "parameter servers"),
    },
)


def make_synchroniser(context: Context) -> Synchroniser:
    """The synchroniser of a plan.

    Raises:
        InputError: The mode cannot keep these ranks together.
    """
    sync = parse_sync(context.plan.sync)
    return SYNCHRONISERS.load(sync.mode.name)(context, sync)
