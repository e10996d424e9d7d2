"""Where it is trained: devices, nodes, links, measured collectives, the machine catalogue."""

from autopar.cluster.cluster import Cluster, NodeGroup
from autopar.cluster.curve import CollectiveCurve
from autopar.cluster.machine import Device, Link, Machine
from autopar.cluster.overhead import HostOverhead

__all__ = ["Cluster", "CollectiveCurve", "Device", "HostOverhead", "Link", "Machine", "NodeGroup"]
