"""Read what a user writes for a cluster: a catalogue expression or a file.

A file is JSON or TOML and holds either a cluster that autopar wrote (schema ``autopar.cluster``)
or a description made by hand (schema ``autopar.cluster_spec``, which may be left out)::

    name = "lab"                      # optional
    backend = "nccl"                  # optional: nccl, gloo or xla

    [[groups]]
    nodes = 2
    machine = "a100-80gb-sxm"         # the catalogue machine to start from
    devices_per_node = 4              # optional, as is every table below

    [groups.device]                   # any field of Device but its name
    power_watt = 300
    [groups.device.peak_flop_per_s]   # replaces single entries
    bfloat16 = 290e12

    [groups.intra]                    # any field of Link
    bytes_per_s = 300e9
    [groups.inter]
    name = "our-ethernet"
    bytes_per_s = 12.5e9
    efficiency = 0.3

Every overridden figure is marked in ``sources`` as given by that file, or with the sentence the
user puts into its ``sources`` table.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from autopar.cluster.catalog import load_entry
from autopar.cluster.cluster import Cluster, NodeGroup
from autopar.core.errors import InputError

MAX_DEVICES = 2**20
MAX_LOCAL_RANKS = 256
_MAX_TEXT = 1000

_FORM = "write it like 4x8:h100-sxm, 2x4:v100-32gb+2x4:t4, local:2 or a JSON/TOML file"
_TERM = re.compile(r"([0-9]{1,9})x([0-9]{1,9}):([^+:\s]+)")
_LOCAL = re.compile(r"local(?::(.*))?", re.DOTALL)
_FILE_SUFFIXES = (".json", ".toml")


def parse_cluster(text: str) -> Cluster:
    """The cluster a user names by file or by catalogue expression.

    ``local[:ranks]`` is measured, not parsed; ask :func:`is_local` first.

    Raises:
        InputError: Neither a readable cluster file nor a valid expression.
    """
    text = text.strip()
    if not text:
        raise InputError("the cluster is empty", hint=_FORM)
    if is_local(text) is not None:
        raise InputError(
            f"'{text}' is this host, which has to be measured",
            hint="measure it with `autopar profile --cluster local` and pass that file",
        )
    if len(text) > _MAX_TEXT or not text.isprintable():
        raise InputError(
            f"'{ascii(text[:40])[1:-1]}...' is not a cluster: at most {_MAX_TEXT} printable "
            "characters are allowed",
            hint=_FORM,
        )
    if text.endswith(_FILE_SUFFIXES) or _is_file(text):
        from autopar.cluster.spec import load_cluster_file

        return load_cluster_file(Path(text))
    groups = tuple(_group(term, text) for term in text.split("+"))
    total = sum(group.devices for group in groups)
    if total > MAX_DEVICES:
        raise InputError(
            f"cluster '{text}' has {total} devices, more than {MAX_DEVICES} allowed",
            hint="use fewer nodes",
        )
    return Cluster(name=text, groups=groups, backend=backend_of(groups))


def _is_file(text: str) -> bool:
    try:
        return Path(text).is_file()
    except OSError:  # too long for a file name
        return False


def is_local(text: str) -> int | None:
    """The number of ranks if the text is ``local`` or ``local:RANKS``, else ``None``.

    ``local`` alone means one rank per processor this process may use.

    Raises:
        InputError: The text is ``local:`` followed by no usable number.
    """
    match = _LOCAL.fullmatch(text.strip())
    if match is None:
        return None
    if match[1] is None:
        return usable_processors()
    if not re.fullmatch(r"[0-9]{1,9}", match[1]) or not 1 <= int(match[1]) <= MAX_LOCAL_RANKS:
        raise InputError(
            f"'{text.strip()}' needs a number of ranks from 1 to {MAX_LOCAL_RANKS}",
            hint="write it like local:2",
        )
    return int(match[1])


def usable_processors() -> int:
    """Processors this process may run on (its affinity where the system tells it)."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def backend_of(groups: tuple[NodeGroup, ...]) -> str:
    """The torch.distributed backend that reaches every device: nccl only among GPUs."""
    kinds = {group.machine.device.kind for group in groups}
    if kinds == {"tpu"}:
        return "xla"
    return "nccl" if kinds in ({"cuda"}, {"rocm"}) else "gloo"


def _group(term: str, text: str) -> NodeGroup:
    match = _TERM.fullmatch(term.strip())
    if match is None:
        raise InputError(f"'{term}' in cluster '{text}' is not NODESxDEVICES:MACHINE", hint=_FORM)
    nodes, devices = int(match[1]), int(match[2])
    entry = load_entry(match[3])
    if nodes < 1 or devices < 1:
        short = "nodes" if nodes < 1 else "devices per node"
        raise InputError(f"cluster '{text}' has 0 {short}, at least 1 is needed", hint=_FORM)
    return NodeGroup(machine=entry.with_devices(devices), nodes=nodes)
