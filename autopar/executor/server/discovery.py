"""Servers and workers find each other through the run's store, and through nothing else."""

from __future__ import annotations

import json
from datetime import timedelta

from torch._C._distributed_c10d import Store

from autopar.core.errors import TrainingError
from autopar.executor.server.client import Endpoint
from autopar.executor.server.protocol import text, whole

_KEY = "autopar/server"
_MAX_PORT = 65535


def publish(store: Store, endpoint: Endpoint) -> None:
    """Tell where the server beside a rank is."""
    row = {
        "address": endpoint.address,
        "port": endpoint.port,
        "fingerprint": endpoint.fingerprint,
    }
    store.set(f"{_KEY}/{endpoint.owner}", json.dumps(row))


def find(store: Store, owner: int, timeout_s: float) -> Endpoint:
    """Where the server beside a rank is.

    Raises:
        TrainingError: It did not say so in time.
    """
    key = f"{_KEY}/{owner}"
    try:
        store.wait([key], timedelta(seconds=timeout_s))
    except RuntimeError as error:
        raise TrainingError(
            f"the parameter server beside rank {owner} did not start in {timeout_s:g} s",
            hint="read the server's log",
        ) from error
    row = json.loads(store.get(key))
    return Endpoint(
        address=text(row, "address"),
        port=whole(row, "port", _MAX_PORT),
        fingerprint=text(row, "fingerprint"),
        owner=owner,
    )
