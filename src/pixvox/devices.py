"""The device that pixvox works on when none is asked for."""

from __future__ import annotations

import platform
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def default_device() -> torch.device:
    """Return CUDA, else MPS, else the CPU."""
    import torch

    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def device_summary() -> dict[str, Any]:
    """Return kind, name and number of the default device; for CUDA its memory too."""
    import torch

    kind = default_device().type
    if kind == "cuda":
        properties = torch.cuda.get_device_properties(0)
        return {
            "kind": kind,
            "name": properties.name,
            "count": torch.cuda.device_count(),
            "memory_gib": round(properties.total_memory / 2**30, 1),
            "bf16": torch.cuda.is_bf16_supported(),
        }
    return {"kind": kind, "name": platform.machine() if kind == "mps" else _cpu_name(), "count": 1}


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            found = re.search(r"model name\s*:\s*(.+)", file.read())
    except OSError:
        found = None
    return found.group(1).strip() if found else platform.processor() or platform.machine()
