"""The folder of a run: what lies in it, and whether it may be used again."""

from __future__ import annotations

import contextlib
import fcntl
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from keras_vmoe.trainers import gin_config
from keras_vmoe.trainers.metrics_log import MetricsLog

#: These change when something is measured or saved, not what is trained.
OF_MEASURING = frozenset(
    (
        "train.log_every",
        "train.eval_every",
        "train.checkpoint_every",
        "train.keep_checkpoints",
        "train.keep_best",
        "train.picture_every",
        "train.eval_batch_size",
        "train.routing_images",
        *("train.few_shot", "train.retrieval", "train.zero_shot"),
        "train.distribution",
        "train.mesh",
        *(f"FewShot.{name}" for name in ("dataset", "shots", "seeds", "every", "crop")),
        "FewShot.batch_size",
        *(f"Retrieval.{name}" for name in ("every", "batch_size", "max_images", "crop")),
        *(f"ZeroShot.{name}" for name in ("dataset", "class_names", "templates", "every")),
        *("ZeroShot.batch_size", "ZeroShot.crop"),
        *("dataset.data_dir", "dataset.verify", "pairs.data_dir", "pairs.verify"),
        "boxes.data_dir",
        "pairs.vocabulary",  # whose content is compared
    )
)
# A run may resume with others. A longer run is the same run with its schedule stretched.
_MAY_CHANGE = OF_MEASURING | {"train.epochs", "train.steps"}


class Workdir:
    """The folder that a run writes to and resumes from.

    Args:
        path: the folder; it is made when it is missing.

    Raises:
        OSError: if the folder cannot be made or written to.

    Example:
        >>> workdir = Workdir(Path(tempfile.mkdtemp()))
        >>> workdir.metrics.rows()
        []
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.path) as probe:
                probe.write(b"\0" * 4096)
                probe.flush()
        except OSError as error:
            raise OSError(
                f"--workdir={path} cannot be written to ({error.strerror}); "
                "free some space, mend its permissions or name another --workdir"
            ) from error
        self.metrics = MetricsLog(self.path / "metrics.jsonl")
        self.checkpoints = self.path / "checkpoints"
        self.tensorboard = self.path / "tensorboard"
        self.config = self.path / "config.gin"
        self.model = self.path / "model.keras"
        self.tokenizer = self.path / "tokenizer.model"
        self.routing = self.path / "routing.png"
        self.modalities = self.path / "modalities.png"

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps other processes of this machine out of the folder, within a `with` block.

        The lock ends with its process, however that ends. File systems without locks have none.

        Raises:
            ValueError: if another process has it.
        """
        folder = os.open(self.path, os.O_RDONLY)
        try:
            try:
                fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ValueError(
                    f"--workdir={self.path} is in use: another process trains there; wait for its "
                    "end, or name another --workdir"
                ) from None
            except OSError:
                pass
            yield
        finally:
            os.close(folder)

    def of_worker(self, index: int) -> Workdir:
        """Returns where a worker beside the chief writes what is of no use but to the run itself.

        Args:
            index: of the worker; 0, the chief, has the folder itself.
        """
        return Workdir(self.path / "workers" / str(index)) if index else self

    def has_checkpoints(self) -> bool:
        """Tells whether there is a run here to go on with."""
        return any(self.checkpoints.glob("*.index"))

    def check_config(self, text: str) -> list[str]:
        """Compares a run's operative config with that of the run which lies here.

        Args:
            text: the operative config of the run that wants the folder.

        Returns:
            The changes that do no harm, as words, such as "train.epochs 50 -> 60".

        Raises:
            ValueError: if the folder holds a run of another configuration.
        """
        # Without a checkpoint there is nothing to resume, and nothing to lose.
        if not self.config.exists() or not self.has_checkpoints():
            return []
        if not self._bindings():
            raise ValueError(
                f"--workdir={self.path} holds checkpoints, but its config.gin is empty, which "
                "tells of which run they are; bring it back, or use another --workdir"
            )
        changes = self.changes(text)
        serious = [words for name, words in changes.items() if name not in _MAY_CHANGE]
        if serious:
            more = f" and {len(serious) - 4} more" if len(serious) > 4 else ""
            raise ValueError(
                f"--workdir={self.path} holds a run of another configuration "
                f"({', '.join(serious[:4])}{more}); use another --workdir or remove it"
            )
        return list(changes.values())

    def changes(self, text: str) -> dict[str, str]:
        """Returns what differs between a run's operative config and the one that lies here.

        A parameter that this one does not have and nobody gives a value came with a later version
        of the package: it does not differ.

        Args:
            text: the operative config of the run.

        Returns:
            Of each binding that differs its name, and words, such as "train.epochs 50 -> 60".
        """
        there, here = self._bindings(), gin_config.bindings(text)
        values = {name: (there.get(name, "-"), here.get(name, "-")) for name in there | here}
        return {
            name: f"{name} {was} -> {now}"
            for name, (was, now) in sorted(values.items())
            if was != now and (name in there or gin_config.bound(name) is not None)
        }

    def _bindings(self) -> dict[str, str]:
        exists = self.config.exists()
        return gin_config.bindings(self.config.read_text(encoding="utf-8")) if exists else {}

    def write_config(self, text: str) -> None:
        """Writes the operative config, whole or not at all."""
        self.replace(self.config, lambda path: path.write_text(text, encoding="utf-8"))

    def replace(self, target: Path, write: Callable[[Path], object]) -> None:
        """Writes a file under another name and renames it when it is whole.

        Args:
            target: the file; an older one of this name survives a failure.
            write: writes the path that it is called with; the path ends like the target's.
        """
        temporary = target.with_name(f".new-{os.getpid()}-{target.name}")
        try:
            write(temporary)
            os.replace(temporary, target)
        except OSError as error:
            raise OSError(
                f"cannot write {target} ({error.strerror or error}); free some space and give the "
                "same command to go on"
            ) from error
        finally:
            temporary.unlink(missing_ok=True)


def default_path(gin_file: str, seed: int) -> Path:
    """Returns the workdir of a run that names none, below the current folder.

    Args:
        gin_file: the run's (last) gin file.
        seed: its seed.

    Example:
        >>> str(default_path("runs/quickstart.gin", seed=0))
        'workdir/quickstart-seed0'
        >>> str(default_path("runs/limoe/quickstart.gin", seed=0))
        'workdir/limoe/quickstart-seed0'
    """
    path = Path(gin_file)
    # Run files of the same name in several families are several runs.
    family = path.parent.parts[path.parts.index("runs") + 1 :] if "runs" in path.parts else ()
    return Path("workdir", *family, f"{path.stem}-seed{seed}")
