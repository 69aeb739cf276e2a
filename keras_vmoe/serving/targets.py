"""Where exported models are written: whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path


def move(draft: Path, target: Path) -> None:
    """Puts the draft at the target; a crash leaves what was there, or its folder beside it."""
    if not target.is_dir():
        os.replace(draft, target)
        return
    # A folder cannot be replaced in one step.
    aside = Path(tempfile.mkdtemp(prefix=f".{target.name}.replaced-", dir=target.parent))
    os.replace(target, aside / target.name)
    try:
        os.replace(draft, target)
    except BaseException:
        os.replace(aside / target.name, target)
        aside.rmdir()
        raise
    shutil.rmtree(aside)
