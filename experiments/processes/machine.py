"""The description of the machine and the libraries in a result, without host names and paths."""

from __future__ import annotations

import os
import platform
import resource
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

import embcomp


def hardware(device: torch.device) -> dict[str, Any]:
    """Return the processor, its cores, memory in bytes, threads used, and the accelerator if one is used."""
    properties: dict[str, Any] = {
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "memory": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "threads": torch.get_num_threads(),
    }
    if device.type == "cuda":
        properties["gpu"] = torch.cuda.get_device_name(device)
    return properties


def versions() -> dict[str, str]:
    installed = {"python": platform.python_version(), "embcomp": embcomp.__version__, "torch": str(torch.__version__)}
    for package in ("torchrec", "fbgemm-gpu-cpu", "fbgemm-gpu", "polars"):
        try:
            installed[package] = version(package)
        except PackageNotFoundError:
            continue
    return installed


class PeakMemory:
    """The peak memory of this process since the object was made: resident bytes, or the accelerator's if one is used.

    On Linux the peak of earlier runs is reset; elsewhere it is the peak of the process.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        elif Path("/proc/self/clear_refs").exists():
            Path("/proc/self/clear_refs").write_text("5")

    def nbytes(self) -> int:
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        status = Path("/proc/self/status")
        if status.exists():
            for line in status.read_text().splitlines():
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) * 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
