"""Several training runs side by side, each a process of its own on one core."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from keras_vmoe import data
from keras_vmoe.trainers import configurables, gin_config
from keras_vmoe.trainers.config import TrainConfig
from keras_vmoe.trainers.metrics_log import MetricsLog
from keras_vmoe.trainers.stopping import StopSignal
from keras_vmoe.trainers.work_progress import WorkProgress

_SECONDS_BETWEEN_LOOKS = 1.0


class Training(NamedTuple):
    """One run: a gin file, what is bound beside it, and its workdir.

    Attributes:
        name: what people call it.
        gin_file: the file, as `keras-vmoe train` takes it.
        bindings: such as "train.seed=1".
        workdir: its folder; a run that it holds goes on.
        steps: its length, once that is known; for the progress line.
    """

    name: str
    gin_file: str
    bindings: tuple[str, ...]
    workdir: Path
    steps: int = 0

    @property
    def log(self) -> Path:
        """Where its output goes."""
        return self.workdir.with_name(self.workdir.name + ".log")

    def command(self) -> list[str]:
        """The words that start it."""
        return [
            *(sys.executable, "-m", "keras_vmoe.trainers.cli", "train"),
            f"--gin_file={self.gin_file}",
            *(f"--gin_bindings={binding}" for binding in self.bindings),
            f"--workdir={self.workdir}",
        ]

    def accuracy(self) -> float:
        """The held-out accuracy at its end."""
        return MetricsLog(self.workdir / "metrics.jsonl").last("eval")["accuracy"]

    def evaluations(self) -> list[tuple[int, float]]:
        """The step and the held-out accuracy of each evaluation."""
        rows = MetricsLog(self.workdir / "metrics.jsonl").rows()
        return [(row["step"], row["accuracy"]) for row in rows if row["split"] == "eval"]

    def step(self) -> int:
        """The last step that it logged."""
        row = MetricsLog(self.workdir / "metrics.jsonl").last("train")
        return row["step"] if row else 0


def configure(training: Training) -> TrainConfig:
    """Reads what a run's gin file and bindings say."""
    gin_config.parse([training.gin_file], training.bindings)
    return configurables.train_config()


def length(config: TrainConfig, source: data.ImageSource) -> int:
    """The steps of a run on a dataset."""
    return config.total_steps(source.train.steps_per_epoch(config.batch_size))


def train_all(trainings: Sequence[Training], processes: int, label: str = "training") -> None:
    """Trains all runs, a few at a time, and shows how far they are; finished ones cost little.

    Args:
        trainings: the runs.
        processes: how many run side by side, each on one thread.
        label: what the line of progress says.

    Raises:
        RuntimeError: if a run fails; it names the run and the last line of its log. The others
            are stopped first; each has saved its state, and goes on when called again.
        StopRequested: after Ctrl-C or SIGTERM, with all runs stopped in the same way.
    """
    total = float(sum(training.steps for training in trainings))
    progress = WorkProgress(total_work=total)
    progress.begin(label, work=total)
    running: dict[Training, subprocess.Popen] = {}
    with StopSignal() as stop:
        try:
            _run_all(list(trainings), running, processes, progress, stop)
        finally:
            _stop(running.values())
            progress.clear()


def _run_all(
    waiting: list[Training],
    running: dict[Training, subprocess.Popen],
    processes: int,
    progress: WorkProgress,
    stop: StopSignal,
) -> None:
    total, done = sum(training.steps for training in waiting), 0
    while waiting or running:
        stop.check()
        while waiting and len(running) < processes:
            training = waiting.pop(0)
            running[training] = _start(training)
        time.sleep(_SECONDS_BETWEEN_LOOKS)
        for training, process in list(running.items()):
            if process.poll() is None:
                continue
            del running[training]
            if process.returncode:
                raise RuntimeError(f"{training.name} failed: {_last_line(training)}")
            done += training.steps
            progress.print(f"{training.name}: held-out accuracy {training.accuracy():.2%}")
        progress.advance((done + sum(training.step() for training in running)) / total)


def _start(training: Training) -> subprocess.Popen:
    training.workdir.parent.mkdir(parents=True, exist_ok=True)
    # One thread each: two runs side by side do more than one run on two threads.
    threads = {"TF_NUM_INTRAOP_THREADS": "1", "TF_NUM_INTEROP_THREADS": "1", "OMP_NUM_THREADS": "1"}
    with open(training.log, "ab") as log:
        # In a session of its own: Ctrl-C reaches this process alone, which then stops its runs.
        return subprocess.Popen(
            training.command(),
            env={**os.environ, **threads},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def _stop(processes: Sequence[subprocess.Popen]) -> None:
    for process in processes:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)  # on which a run saves its state
    for process in processes:
        process.wait()


def _last_line(training: Training) -> str:
    lines = training.log.read_text(errors="replace").split("\n")
    errors = [line for line in lines if line.startswith("keras-vmoe: error")]
    return f"{(errors or [line for line in lines if line] or [''])[-1]} (see {training.log})"
