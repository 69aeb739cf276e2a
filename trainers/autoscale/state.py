"""The file that a search or a growth goes on from."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from keras_vmoe.trainers import model_flags

_MEND = "move it away, or name another --out"


def write(path: Path, content: Any) -> None:
    """Writes JSON, whole or not at all; NaN and infinity become null.

    Raises:
        OSError: if it cannot be written.
    """
    model_flags.write_json(path, _finite(content))


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(x) for key, x in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(x) for x in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read(path: Path, settings: Mapping[str, Any]) -> dict[str, Any] | None:
    """Reads the state of the same command, if there is one.

    Args:
        path: the file.
        settings: all that the outcome depends on.

    Returns:
        The file's content, with NaN for null among the steps' numbers; `None` without a file.

    Raises:
        ValueError: a file that is no such state, or one of other settings.
    """
    if not path.exists():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        found, trace = content["settings"], content["trace"]
        trace = [{k: math.nan if v is None else v for k, v in row.items()} for row in trace]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is no state to go on from ({error!r}); {_MEND}") from error
    wanted = json.loads(json.dumps(settings))
    other = sorted(name for name in wanted | found if wanted.get(name) != found.get(name))
    if other:
        # The digest is no flag: it is named where nothing else tells of the other images.
        named = [name for name in other if name != "images_digest"] or other
        words = ", ".join(f"{name}={found.get(name)!r}" for name in named)
        raise ValueError(
            f"{path} was made with {words}, which differs from this command; {_MEND}, or give "
            "the same flags to go on"
        )
    return content | {"trace": trace}


def resume(resume_from: Callable[[Any], None], found: Any, path: Path) -> None:
    """Goes back to what a file holds.

    Args:
        resume_from: of a `Search` or a `Growth`.
        found: what it takes.
        path: the file that it is of.

    Raises:
        ValueError: if it is no such thing; the message names the file.
    """
    try:
        resume_from(found)
    except (KeyError, TypeError, IndexError, ValueError) as error:
        raise ValueError(f"{path} is no state to go on from ({error!r}); {_MEND}") from error
