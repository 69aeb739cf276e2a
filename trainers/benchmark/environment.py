"""Where a measurement was made: the machine, the versions, and what else was running."""

from __future__ import annotations

import contextlib
import os
import platform
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

_PACKAGES = ("keras_vmoe", "keras", "tensorflow", "numpy")
_WHERE_INSTALLED = ("ai-edge-litert",)


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
    found = {"python": platform.python_version()} | {n: metadata.version(n) for n in _PACKAGES}
    for name in _WHERE_INSTALLED:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def load_average() -> list[float]:
    """Returns the machine's load averages over 1, 5 and 15 minutes."""
    return [round(value, 2) for value in os.getloadavg()]


def in_words(machine: Mapping[str, Any], versions: Mapping[str, str]) -> str:
    """Returns a machine and versions as words.

    Args:
        machine: what `machine` gave, here or elsewhere.
        versions: what `versions` gave.

    Example:
        >>> facts = {"cpu": "EPYC", "cores": 2, "memory_bytes": 8e9}
        >>> in_words(facts, {"tensorflow": "2.20.0", "keras": "3.15.1"})
        'EPYC, 2 cores, 8 GB; tensorflow 2.20.0, keras 3.15.1'
    """
    return (
        f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_bytes'] / 1e9:.0f} GB; "
        f"tensorflow {versions['tensorflow']}, keras {versions['keras']}"
    )


def describe() -> str:
    """Returns machine, versions and load as one line."""
    return f"{in_words(machine(), versions())}; load average {load_average()[0]:.2f} before"
