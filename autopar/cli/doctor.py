"""``autopar doctor``: what this host can do."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from autopar.cli.options import Json
from autopar.cli.session import session
from autopar.core.errors import EnvironmentUnableError
from autopar.core.provenance import provenance
from autopar.core.units import format_bytes


@dataclass(frozen=True, slots=True)
class Check:
    """One thing looked at: ``ok``, ``note`` (works without) or ``fail``."""

    name: str
    status: str
    detail: str


def command(json_output: Json = False) -> None:
    """Check Python, torch, backends, processors, memory, disk and optional packages."""
    with session("doctor", json_output=json_output) as talk:
        checks = [_python(), *_torch(), _processors(), _memory(), _disk(), _loopback(), *_extras()]
        data = {"checks": [asdict(check) for check in checks], "provenance": provenance()}
        talk.data = data
        failed = [check for check in checks if check.status == "fail"]

        def show(console: Any) -> None:
            colours = {"ok": "green", "note": "yellow", "fail": "red"}
            for check in checks:
                mark = f"[{colours[check.status]}]{check.status:4}[/]"
                console.print(f"{mark} {check.name:14} ", end="")
                console.print(check.detail, markup=False)

        if failed:
            if not json_output:
                show(talk.out)
            raise EnvironmentUnableError(
                f"{failed[0].name}: {failed[0].detail}", hint="mend it and run doctor again"
            )
        talk.finish(data, show)


def _python() -> Check:
    version = platform.python_version_tuple()
    good = (int(version[0]), int(version[1])) >= (3, 11)
    return Check("python", "ok" if good else "fail", platform.python_version())


def _torch() -> list[Check]:
    try:
        import torch
        import torch.distributed as dist
    except ImportError as error:
        return [Check("torch", "fail", f"cannot be imported: {error}")]
    version = torch.__version__
    tested = (2, 11) <= tuple(int(p) for p in version.split(".")[:2]) < (2, 14)
    checks = [
        Check(
            "torch",
            "ok" if tested else "note",
            version + ("" if tested else ", tested range is 2.11 to 2.13"),
        )
    ]
    backends = [
        b
        for b, there in (("gloo", dist.is_gloo_available()), ("nccl", dist.is_nccl_available()))
        if there
    ]
    checks.append(Check("backends", "ok" if backends else "fail", ", ".join(backends) or "none"))
    count = torch.cuda.device_count()
    names = {torch.cuda.get_device_name(i) for i in range(count)}
    detail = f"{count} x {', '.join(sorted(names))}" if count else "none, runs use the CPU"
    checks.append(Check("cuda", "ok" if count else "note", detail))
    return checks


def _processors() -> Check:
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return Check("processors", "ok" if (count or 1) > 1 else "note", f"{count} usable")


def _memory() -> Check:
    import psutil

    free = psutil.virtual_memory().available
    return Check("memory", "ok" if free > 2 * 1024**3 else "note", f"{format_bytes(free)} free")


def _disk() -> Check:
    free = shutil.disk_usage(Path.cwd()).free
    return Check("disk", "ok" if free > 1024**3 else "note", f"{format_bytes(free)} free here")


def _loopback() -> Check:
    import socket

    try:
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
        return Check("loopback", "ok", f"port {port} could be opened")
    except OSError as error:
        return Check("loopback", "fail", f"cannot open a port on 127.0.0.1: {error}")


def _extras() -> list[Check]:
    found = importlib.util.find_spec("transformers") is not None
    detail = "installed" if found else "missing: 8 zoo models need pip install 'autopar[zoo]'"
    return [Check("transformers", "ok" if found else "note", detail)]
