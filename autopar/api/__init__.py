"""The Python API: the words of the command line as functions."""

from autopar.api.benchmark import bench
from autopar.api.clusters import measure_cluster, resolve_cluster
from autopar.api.exporting import export
from autopar.api.machines import choose_machines
from autopar.api.own_loop import parallelize
from autopar.api.planning import plan
from autopar.api.profiling import profile
from autopar.api.reporting import report
from autopar.api.running import run

__all__ = [
    "bench",
    "choose_machines",
    "export",
    "measure_cluster",
    "parallelize",
    "plan",
    "profile",
    "report",
    "resolve_cluster",
    "run",
]
