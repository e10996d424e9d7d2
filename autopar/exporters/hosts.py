"""Hosts: how many machines a plan's ranks spread over, from the cluster it was planned for."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

from autopar.cluster import Cluster
from autopar.cluster.parse import is_local, parse_cluster
from autopar.core.errors import InputError
from autopar.plans import Plan

_CATALOGUE = re.compile(r"[0-9]{1,9}x[0-9]{1,9}:[^+:\s]+(\+[0-9]{1,9}x[0-9]{1,9}:[^+:\s]+)*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Hosts:
    """Machines of one run.

    Attributes:
        nodes: Machines.
        ranks_per_node: Ranks on each of them.
        accelerators: True when each rank needs one, False on CPU hosts.
        doubts: ``(fact, reason)`` where equal hosts filled in order are not what the plan says.
    """

    nodes: int
    ranks_per_node: int
    accelerators: bool
    doubts: tuple[tuple[str, str], ...] = ()


def hosts_of(plan: Plan, nodes: int | None = None) -> Hosts:
    """The hosts a plan runs on.

    Args:
        plan: The plan.
        nodes: Hosts, when the user says so; else those of the plan's catalogue cluster that hold
            ranks, and one host for any other cluster.

    Raises:
        InputError: The ranks do not spread evenly over the hosts.
    """
    cluster = _catalogue_cluster(plan.cluster)
    found = [] if cluster is None else _nodes(plan, cluster)
    count = nodes or len(set(found)) or 1
    if count < 1 or plan.world_size % count:
        raise InputError(
            f"plan {plan.name} has {plan.world_size} ranks for {count} hosts",
            hint="give --nnodes a number of hosts that divides the ranks",
        )
    each = plan.world_size // count
    return Hosts(
        nodes=count,
        ranks_per_node=each,
        accelerators=plan.threads is None if cluster is None else cluster.backend != "gloo",
        doubts=tuple(_doubts(plan, found, each, stated=nodes is not None)),
    )


def _doubts(plan: Plan, found: list[int], each: int, *, stated: bool) -> Iterator[tuple[str, str]]:
    if not found:
        if not stated and is_local(plan.cluster or "local") is None:
            yield (
                "cluster",
                f"'{plan.cluster}' is not a catalogue cluster, whose hosts could be counted: one "
                "host is assumed, --nnodes says otherwise",
            )
        return
    blocks = [found[start : start + each] for start in range(0, len(found), each)]
    mixed = any(len(set(block)) > 1 for block in blocks)
    if mixed or any(a[0] >= b[0] for a, b in pairwise(blocks)):
        yield (
            "cluster" if plan.placement == tuple(range(plan.world_size)) else "placement",
            f"the launcher gives each host {each} ranks in order; the plan places them on nodes "
            f"{_short(found)}",
        )


def _short(found: list[int], limit: int = 16) -> str:
    text = ", ".join(map(str, found[:limit]))
    return text + (", ..." if len(found) > limit else "")


def _catalogue_cluster(name: str) -> Cluster | None:
    """The cluster of a catalogue expression, ``None`` for ``local`` and for names of files.

    Raises:
        InputError: The expression names a machine the catalogue does not have.
    """
    return parse_cluster(name) if _CATALOGUE.fullmatch(name) else None


def _nodes(plan: Plan, cluster: Cluster) -> list[int]:
    outside = [device for device in plan.placement if not 0 <= device < cluster.device_count]
    if outside:
        raise InputError(
            f"plan {plan.name} uses device {outside[0]}, cluster '{plan.cluster}' has devices "
            f"0..{cluster.device_count - 1}",
            hint="plan again for this cluster",
        )
    return [cluster.node(device) for device in plan.placement]
