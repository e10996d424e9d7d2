"""Clusters by name: catalogue, file, or this host measured once and remembered."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

from autopar.api.places import cluster_path
from autopar.cluster import Cluster
from autopar.cluster.parse import is_local, parse_cluster
from autopar.core.errors import InputError
from autopar.core.host_watch import HostWatch, quiet_again
from autopar.core.provenance import provenance

Progress = Callable[[str, int, int], None]


def _host_key() -> dict[str, Any]:
    facts = provenance()
    return {
        "host": platform.node(),
        "system": facts["system"],
        "cpu_count": os.cpu_count(),
        "torch": facts["packages"]["torch"],
        "autopar": facts["autopar"],
    }


def measure_cluster(
    ranks: int | None = None,
    *,
    out: Path | str | None = None,
    quick: bool = False,
    progress: Progress | None = None,
    nnodes: int = 1,
    node_rank: int = 0,
    rdzv_endpoint: str | None = None,
) -> Cluster:
    """Measure this host, or several together, as a cluster and store it.

    On several hosts the same call is made on each.

    Args:
        ranks: Ranks per host; the number of GPUs, or 2 on a CPU host, when not given.
        out: File to write; ``profiles/cluster-local-N.json`` by default.
        quick: Fewer message sizes and repeats.
        progress: ``progress(stage, done, total)``.
        nnodes: Hosts measured together.
        node_rank: This host's number.
        rdzv_endpoint: ``host:port`` of host 0.

    Raises:
        InputError: ``ranks`` is not positive.
        EnvironmentUnableError: The processes cannot talk to each other.
    """
    from autopar.profiler.interconnect.cluster import Place
    from autopar.profiler.interconnect.cluster import measure_cluster as measure

    count = default_ranks() if ranks is None else ranks
    if count < 1:
        raise InputError(f"local:{count} has no ranks", hint="use local:1 or more")
    place = Place(nnodes=nnodes, node_rank=node_rank, rdzv_endpoint=rdzv_endpoint)
    watch = HostWatch()
    cluster = measure(count, quick=quick, progress=_percent(progress), place=place)
    if nnodes == 1 and cluster.backend == "gloo":
        from autopar.api.overhead import with_overhead

        cluster = with_overhead(cluster, quick=quick)
    cluster.provenance["measurement"]["others_share"] = watch.others()
    cluster.provenance["host_key"] = _host_key()
    name = f"local-{count}" if nnodes == 1 else f"hosts-{nnodes}x{count}"
    cluster.save(Path(out) if out is not None else cluster_path(name))
    return cluster


def _percent(progress: Progress | None) -> Callable[[str, float], None] | None:
    if progress is None:
        return None
    return lambda stage, fraction: progress(stage, round(100 * fraction), 100)


def default_ranks() -> int:
    """Ranks ``local`` stands for: CUDA devices if any, else 2."""
    import torch

    return torch.cuda.device_count() or 2


def names_this_host(cluster: Cluster | str | Path) -> bool:
    """Whether it is ``local[:ranks]``, which has to be measured unless it was before."""
    text = str(cluster)
    return not isinstance(cluster, Cluster) and (text == "local" or text.startswith("local:"))


def resolve_cluster(cluster: Cluster | str | Path, *, progress: Progress | None = None) -> Cluster:
    """A cluster from a value, a file, a catalogue string, or ``local[:ranks]``.

    ``local`` is measured at first use and read back afterwards, as long as host, torch and
    autopar version are the same, and unless other programs disturbed it and have gone since.

    Raises:
        InputError: The string names no cluster.
    """
    if isinstance(cluster, Cluster):
        return cluster
    text = str(cluster)
    if not names_this_host(cluster):
        return parse_cluster(text)
    ranks = is_local(text)
    count = ranks if ranks else default_ranks()
    stored = cluster_path(f"local-{count}")
    if stored.is_file():
        try:
            known = Cluster.load(stored)
        except InputError:
            known = None
        same = known is not None and known.provenance.get("host_key") == _host_key()
        fits = known is not None and same and known.device_count == count
        if known is not None and fits and not quiet_again(known.others_share):
            return known
    return measure_cluster(count, progress=progress)
