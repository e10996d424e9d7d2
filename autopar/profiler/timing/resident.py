"""Memory of a process that has imported and traced what a training rank does.

``python -m autopar.profiler.timing.resident TARGET`` prints it in bytes.
"""

from __future__ import annotations

import os
import subprocess
import sys

import psutil

from autopar.core.errors import AutoparError, EnvironmentUnableError
from autopar.tasks import resolve
from autopar.trace import trace


def resident_after_tracing(target: str | None) -> tuple[float, str | None]:
    """Resident bytes of this process, and why it could not trace, if it could not."""
    warning = None
    if target is not None:
        try:
            trace(resolve(target), 2, device="meta")
        except AutoparError as error:
            warning = f"memory of a rank measured without tracing in it: {error}"
    return float(psutil.Process().memory_info().rss), warning


def measure_resident(target: str) -> float:
    """The same in a fresh process.

    Raises:
        EnvironmentUnableError: It failed.
    """
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p or os.getcwd() for p in sys.path)}
    found = subprocess.run(
        [sys.executable, "-m", __name__, target],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    if found.returncode:
        words = found.stderr.strip().splitlines()
        raise EnvironmentUnableError(
            f"measuring the memory of a process failed: {words[-1] if words else 'no message'}",
            hint="check memory with `autopar doctor`",
        )
    return float(found.stdout.split()[-1])


if __name__ == "__main__":
    sys.stdout.write(f"{resident_after_tracing(sys.argv[1])[0]}\n")
