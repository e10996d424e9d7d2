"""Which machines of a cluster a plan runs on, and which it leaves idle."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import groupby

from autopar.cluster import Cluster
from autopar.plans import Plan


def node_words(machine: str, nodes: int) -> str:
    """``2 nodes of t4``."""
    return f"{nodes} node{'' if nodes == 1 else 's'} of {machine}"


def used_words(plan: Plan, cluster: Cluster) -> str:
    """The nodes in the order of the ranks: ``2 nodes of v100-32gb, then 1 node of t4``."""
    nodes = dict.fromkeys((cluster.node(d), cluster.machine(d).name) for d in plan.placement)
    runs = [(name, len(list(run))) for name, run in groupby(nodes, key=lambda node: node[1])]
    return ", then ".join(node_words(name, count) for name, count in runs)


def idle_words(plan: Plan, cluster: Cluster) -> str:
    """The nodes without a rank: ``2 nodes of t4``; empty when there are none."""
    used = {cluster.node(d) for d in plan.placement}
    devices = range(cluster.device_count)
    idle = dict.fromkeys((cluster.node(d), cluster.machine(d).name) for d in devices)
    kinds = Counter(name for node, name in idle if node not in used)
    return " and ".join(node_words(name, count) for name, count in kinds.items())


def machines_used(cluster: Cluster, plan: Plan) -> Cluster:
    """The groups of nodes that a plan has ranks on, to read figures from."""
    used = {id(cluster.machine(device)) for device in plan.placement}
    groups = tuple(group for group in cluster.groups if id(group.machine) in used)
    return replace(cluster, groups=groups)
