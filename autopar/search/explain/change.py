"""Changed clusters for what-if questions and for the relaxations of an infeasible search."""

from __future__ import annotations

import re
from dataclasses import replace

from autopar.cluster import Cluster
from autopar.core.errors import InputError
from autopar.core.registry import did_you_mean
from autopar.search.explain.quantities import QUANTITIES, Change, Quantity

KEYS = tuple(QUANTITIES)
_FACTOR = re.compile(r"^[x*]([0-9]*\.?[0-9]+(?:e-?[0-9]+)?)$", re.IGNORECASE)
_PERCENT = re.compile(r"^([+-][0-9]*\.?[0-9]+)\s*%$")


def changed_cluster(cluster: Cluster, text: str) -> Cluster:
    """The cluster with ``key=value`` changes, separated by commas.

    A value is a factor (``x0.25``), a percentage (``+10%``) or absolute: a rate (``25GB/s``,
    ``200Gbit/s``), a size (``80GiB``), a time (``5us``), a count, USD per device-hour or watt.
    Keys are those of :data:`autopar.search.explain.quantities.QUANTITIES`.

    Raises:
        InputError: Unknown key, unreadable value, or a change the cluster cannot take.
    """
    for quantity, change in parse_changes(text):
        cluster = quantity.apply(cluster, change)
    return replace(cluster, name=f"{cluster.name} with {text}")


def parse_changes(text: str) -> list[tuple[Quantity, Change]]:
    """The changes of ``key=value,key=value``.

    Raises:
        InputError: Unknown key or unreadable value.
    """
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts:
        raise InputError("the change is empty", hint="write it like inter_node_bandwidth=x0.25")
    changes = []
    for part in parts:
        key, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals or key not in QUANTITIES:
            raise InputError(f"cannot change '{key}'", hint=did_you_mean(key, list(KEYS)))
        changes.append((QUANTITIES[key], _change(QUANTITIES[key], value)))
    return changes


def _change(quantity: Quantity, text: str) -> Change:
    factor = _factor(text)
    if factor is not None:
        if factor <= 0:
            raise InputError(f"factor '{text}' is not positive", hint="write it like x0.5")
        return lambda old: old * factor
    value = quantity.parse(text)
    if value <= 0:
        raise InputError(
            f"'{text}' is not positive", hint=f"write it like x0.5 or {quantity.example}"
        )
    return lambda old: value


def _factor(text: str) -> float | None:
    if match := _FACTOR.match(text):
        return float(match[1])
    if match := _PERCENT.match(text):
        return 1 + float(match[1]) / 100
    return None


def scaled_cluster(cluster: Cluster, quantity: str, factor: float) -> Cluster:
    """The cluster with one quantity times a factor.

    Raises:
        InputError: Unknown quantity, or the cluster cannot take the change.
    """
    if quantity not in QUANTITIES:
        raise InputError(f"cannot change '{quantity}'", hint=did_you_mean(quantity, list(KEYS)))
    return QUANTITIES[quantity].apply(cluster, lambda old: old * factor)
