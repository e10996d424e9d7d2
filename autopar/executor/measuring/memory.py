"""Peak memory of this process."""

from __future__ import annotations

import ctypes
import gc
import resource
import sys
from pathlib import Path

import torch

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")


class PeakMemory:
    """Highest memory since the last :meth:`reset`.

    CPU: resident bytes (``VmHWM``), the interpreter and libraries included. CUDA: bytes the
    allocator handed out plus what the context takes on the device; other processes on the same
    device would be counted as context.

    Args:
        device: Device of this rank.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.warning: str | None = None
        self._context_bytes = 0
        if device.type == "cuda":
            torch.zeros(1, device=device)
            free, total = torch.cuda.mem_get_info(device)
            self._context_bytes = total - free - torch.cuda.memory_reserved(device)

    def reset(self) -> None:
        """Give unused memory back to the system and start over from what is used now."""
        gc.collect()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self._device)
            return
        if sys.platform == "linux":
            trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
            if trim is not None:
                trim(0)
        try:
            _CLEAR.write_text("5")  # proc(5): reset the peak resident set size
        except OSError as error:
            self.warning = (
                f"peak memory counts the building of the model too: cannot reset it ({error})"
            )

    def peak_bytes(self) -> float:
        """Peak so far."""
        if self._device.type == "cuda":
            return float(torch.cuda.max_memory_allocated(self._device) + self._context_bytes)
        if _STATUS.exists():
            for line in _STATUS.read_text().splitlines():
                if line.startswith("VmHWM:"):
                    return float(line.split()[1]) * 1024
        unit = 1 if sys.platform == "darwin" else 1024
        return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)
