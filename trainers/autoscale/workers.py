"""Processes that measure topologies side by side, each on one thread."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TYPE_CHECKING

import numpy as np

from keras_vmoe.trainers.stopping import StopRequested

if TYPE_CHECKING:
    from keras_vmoe.autoscale import Measures, Protocol
    from keras_vmoe.trainers.stopping import StopSignal

# One thread each: two repeats side by side take less than one after the other on two threads, and
# sums come in the same order however many processes there are. glibc keeps tensors of up to 32 MB
# for reuse from the start; taking each anew from the system costs as much as filling it.
_ENVIRONMENT = {
    "TF_NUM_INTRAOP_THREADS": "1",
    "TF_NUM_INTEROP_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "CUDA_VISIBLE_DEVICES": "-1",
    "MALLOC_MMAP_THRESHOLD_": str(2**30),
    "MALLOC_TRIM_THRESHOLD_": str(2**30),
}


class Workers:
    """Measures repeats of topologies in other processes, which start at once and end with it.

    What they find does not depend on how many there are.

    Args:
        protocol: how to measure.
        images: `[b, s, s, 3]` of the NTK.
        processes: how many run side by side.
        stop: of the command. Where a stop was asked for, a process that ended is no fault.
    """

    def __init__(
        self,
        protocol: Protocol,
        images: np.ndarray,
        processes: int,
        stop: StopSignal | None = None,
    ):
        self.protocol, self.processes, self._stop = protocol, processes, stop
        others, self._children = set(multiprocessing.active_children()), set()
        former = {name: os.environ.get(name) for name in _ENVIRONMENT}
        os.environ.update(_ENVIRONMENT)
        try:
            self._pool = ProcessPoolExecutor(
                processes,
                multiprocessing.get_context("spawn"),
                _begin,
                (protocol, images),
            )
            # Processes take the environment that there is when they start.
            started = [self._pool.submit(os.getpid) for _ in range(processes)]
            self._children = set(multiprocessing.active_children()) - others
            for future in started:
                future.result()
        except BrokenProcessPool as error:
            raise self._broken() from error
        finally:
            for name, value in former.items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def measure(
        self,
        genotypes: Sequence[object],
        occasion: int,
        on_share: Callable[[float], None] = lambda share: None,
    ) -> list[Measures]:
        """The mean measures of each of some topologies.

        Args:
            genotypes: the topologies.
            occasion: see `Protocol.measure`.
            on_share: called with the share that is measured, whenever that is more.

        Raises:
            RuntimeError: if a process ended by itself, for want of memory for example.
            StopRequested: if a stop was asked for; what is not yet measured is left.
        """
        from keras_vmoe.autoscale import mean_measures

        repeats = range(self.protocol.repeats)
        tasks = [(str(genotype), occasion, i) for genotype in genotypes for i in repeats]
        found = []
        try:
            for measures in self._pool.map(_measure, tasks):
                found.append(measures)
                on_share(len(found) / len(tasks))
                if self._stop is not None:
                    self._stop.check()
        except BrokenProcessPool as error:
            raise self._broken() from error
        size = len(repeats)
        return [mean_measures(found[i : i + size]) for i in range(0, len(found), size)]

    def _broken(self) -> Exception:
        """Why a process is missing. The others are ended, as nothing else ends them."""
        for child in self._children:
            child.kill()
        if self._stop is not None and self._stop.received:
            return StopRequested(self._stop.received)
        return RuntimeError(
            f"one of {self.processes} measuring processes ended by itself, perhaps for want of "
            "memory; the same command goes on, with fewer --processes if need be"
        )


def _begin(protocol: Protocol, images: np.ndarray) -> None:
    # Ctrl-C reaches all processes of a terminal, and queueing systems send SIGTERM to all of a job;
    # the first of them decides when to stop.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _state["protocol"], _state["images"] = protocol, images


def _end_with_parent() -> None:
    """A parent that is killed cannot tell its processes to end."""
    multiprocessing.parent_process().join()
    os._exit(1)


def _measure(task: tuple[str, int, int]) -> Measures:
    genotype, occasion, repeat = task
    return _state["protocol"].measure(genotype, _state["images"], occasion, repeat)


# Of a measuring process, set when it begins.
_state: dict[str, object] = {}
