"""Where a measurement was made: the machine, the versions, and what else was running."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

_PACKAGES = ("keras_vmoe", "keras", "tensorflow", "numpy")


def machine() -> dict[str, Any]:
    """Returns the CPU's model, the cores that this process may use, and the memory in bytes."""
    usable = getattr(os, "sched_getaffinity", None)
    return {
        "cpu": _cpu_model(),
        "cores": len(usable(0)) if usable else os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": f"{platform.system()} {platform.machine()}",
    }


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    for line in info.read_text().splitlines() if info.is_file() else []:
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def versions() -> dict[str, str]:
    """Returns the versions of Python and of the packages that the times depend on."""
    return {"python": platform.python_version()} | {n: metadata.version(n) for n in _PACKAGES}


def load_average() -> list[float]:
    """Returns the machine's load averages over 1, 5 and 15 minutes."""
    return [round(value, 2) for value in os.getloadavg()]


def describe() -> str:
    """Returns machine, versions and load as one line."""
    found, of = machine(), versions()
    return (
        f"{found['cpu']}, {found['cores']} cores, {found['memory_bytes'] / 1e9:.0f} GB; "
        f"tensorflow {of['tensorflow']}, keras {of['keras']}; "
        f"load average {load_average()[0]:.2f} before"
    )
