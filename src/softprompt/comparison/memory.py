"""The peak memory of the process that asks.

Knows nothing of what the process did.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch


def peak_memory(device: torch.device) -> int:
    """The most bytes this process has held: allocated tensors on a GPU, resident memory elsewhere."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if status.exists():  # on Linux, ru_maxrss starts at the parent's peak
        line = next(line for line in status.read_text(encoding="utf-8").splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    import resource  # not on every system

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
