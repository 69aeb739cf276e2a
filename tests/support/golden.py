"""Reads the reference's numbers in tests/golden."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import numpy as np

FOLDER = Path(__file__).resolve().parent.parent / "golden"


class Golden:
    """One file: `config`, arrays by name, and a view of everything below a prefix."""

    def __init__(self, arrays: dict[str, np.ndarray], config: Any) -> None:
        self.arrays, self.config = arrays, config

    def __getitem__(self, name: str) -> np.ndarray:
        return self.arrays[name]

    def __contains__(self, name: str) -> bool:
        return name in self.arrays

    def under(self, prefix: str) -> dict[str, np.ndarray]:
        """The arrays whose names begin with `prefix/`, without it."""
        start = prefix + "/"
        return {k[len(start) :]: v for k, v in self.arrays.items() if k.startswith(start)}

    def case(self, config: dict[str, Any]) -> Golden:
        """The arrays of one case of a file that holds several."""
        return Golden(self.under(config["id"]), config)

    def cases(self) -> list[Golden]:
        return [self.case(config) for config in self.config]


@functools.cache
def load(name: str) -> Golden:
    """Reads `tests/golden/NAME.npz`."""
    with np.load(FOLDER / f"{name}.npz") as file:
        arrays = {key: file[key] for key in file.files}
    config = json.loads(str(arrays.pop("config_json")))
    return Golden(arrays, config)


def case_name(case: Golden) -> str:
    return case.config["id"]


def max_error(found: Any, wanted: Any) -> float:
    """Largest absolute difference, as a share of the largest magnitude that is wanted."""
    found, wanted = np.asarray(found, "float64"), np.asarray(wanted, "float64")
    assert found.shape == wanted.shape, f"shape {found.shape}, wanted {wanted.shape}"
    if not wanted.size:
        return 0.0
    return float(np.abs(found - wanted).max() / max(np.abs(wanted).max(), 1e-30))
