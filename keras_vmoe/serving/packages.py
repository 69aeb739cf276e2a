"""The packages of the extra `export`, imported where they are used."""

from __future__ import annotations

import importlib
from types import ModuleType

_DISTRIBUTIONS = {"ai_edge_litert.interpreter": "ai-edge-litert"}


def load(module: str) -> ModuleType:
    """Imports a module of the extra `export`.

    Raises:
        ImportError: it is not installed; the message names the extra.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            f"{_DISTRIBUTIONS.get(module, module)} is needed here and cannot be imported "
            f"({error}): pip install 'keras-vmoe[export]'"
        ) from error
