"""How the host is loaded while ops are timed: as many busy ranks as a real run has."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from autopar.profiler import host


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """How the host is loaded while measuring.

    Attributes:
        device: ``cpu`` or ``cuda``.
        name: Model name of the device.
        ranks: Processes that compute at the same time.
        threads: Threads of each.
    """

    device: str
    name: str
    ranks: int
    threads: int


def host_load(device: str, busy_ranks: int | None) -> Load:
    """The load to measure under; by default one busy rank per core, at most eight.

    On a GPU the default is one rank, as ranks do not share devices.
    """
    cores = host.usable_cores()
    if device == "cuda":
        ranks = busy_ranks or 1
        name = torch.cuda.get_device_name()
    else:
        ranks = busy_ranks or min(cores, 8)
        name = host.cpu_name()
    return Load(device=device, name=name, ranks=ranks, threads=max(1, cores // ranks))
