"""Sparse mixtures of experts for vision in Keras 3.

Rooms: `ops` (pure functions), `layers`, `models`, `checkpoints`, `evaluation`, `analysis`,
`data`, `distribution`, `serving`, `superclass`, `text`.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

__version__ = "0.1.0"

_MODULES = (
    "analysis",
    "checkpoints",
    "data",
    "distribution",
    "evaluation",
    "layers",
    "models",
    "ops",
    "serving",
    "superclass",
    "text",
)
_NAMES = {"list_variants": "models", "with_routing": "models", "from_variant": "models"}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"keras_vmoe.{name}")
    if name in _NAMES:
        return getattr(importlib.import_module(f"keras_vmoe.{_NAMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_MODULES, *_NAMES])


# Importing the package registers its classes, so that Keras can load models saved with them. The
# command `keras-vmoe` imports what it needs itself: its help does not wait for a backend.
if Path(sys.argv[0] if sys.argv else "").name not in ("keras-vmoe", "-m"):
    importlib.import_module("keras_vmoe.models")
