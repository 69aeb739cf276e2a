"""Files for small devices: a Mobile V-MoE beside its dense twin, one image at a time."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import keras
import numpy as np

from keras_vmoe import analysis, models, serving
from keras_vmoe.ops.validation import require
from keras_vmoe.trainers.benchmark import device_memory
from keras_vmoe.trainers.benchmark.settings import DeviceSettings
from keras_vmoe.trainers.benchmark.timing import Samples, interleave
from keras_vmoe.trainers.export import quiet_converters
from keras_vmoe.trainers.work_progress import WorkProgress

DENSE = "dense"
# As a trained router decides: random images then go to several experts.
_ROUTER_STDDEV = 3.0
_WORK_OF_FILE, _WORK_OF_TIMING = 1.0, 2.0


class File(NamedTuple):
    """A model in a file.

    Attributes:
        path: of the file.
        form: how it comes to the weights of the experts; `"dense"`: it has none.
        flops, flops_paper: of an image.
    """

    path: Path
    form: str
    flops: int
    flops_paper: int


class Ran:
    """An inference that was made; `numpy` gives what it told of experts, if anything."""

    def __init__(self, interpreter: Any, output: int | None) -> None:
        self._interpreter, self._output = interpreter, output

    def numpy(self) -> np.ndarray | None:
        return None if self._output is None else self._interpreter.get_tensor(self._output)


def build_model(name: str, form: str, settings: DeviceSettings) -> models.MobileVMoE:
    """Builds a model of random weights whose router is decided.

    Args:
        name: of a preset.
        form: the dispatch of its MoE layers.
        settings: the table's.

    Raises:
        ValueError: another kind of model, or an override that it does not have.
    """
    keras.utils.set_random_seed(settings.seed)
    # As Keras has it: a head of zeros would make the outputs zeros.
    own = {"head_kernel_initializer": "glorot_uniform", "shared_expert_init": False}
    arguments = {**own, **settings.overrides, "dispatch": form}
    require(
        name in models.list_variants("mobile_vmoe"),
        f"--model must name presets of MobileVMoE, such as mobile_vmoe_12x192. Received: {name}",
    )
    model = models.from_variant(name, **arguments)
    require(
        models.routes_images(model),
        f"benchmark device measures routing='image' beside its dense twin. "
        f"Received: routing={model.arguments['routing']!r}; leave it out",
    )
    kernel = model.get_layer("router").kernel
    draws = np.random.default_rng(settings.seed).normal(size=kernel.shape)
    kernel.assign(_ROUTER_STDDEV * draws)
    return model


def write_files(
    name: str, precision: str, settings: DeviceSettings, folder: Path, progress: WorkProgress
) -> list[File]:
    """Writes the dense twin of a preset and the preset itself in each form.

    Args:
        name: of the preset.
        precision: of the weights.
        settings: the table's.
        folder: where to.
        progress: is told of each file.
    """
    files = []
    for form in (DENSE, *settings.forms):
        progress.begin(f"{name} {precision} {form}, file", _WORK_OF_FILE)
        model = build_model(name, "auto" if form == DENSE else form, settings)
        model = model.dense_twin() if form == DENSE else model
        path = folder / f"{form}.tflite"
        # What 8 bits do to weights that no training has seen says nothing.
        verify = precision == "float32"
        with quiet_converters(False):
            facts = serving.export(model, path, "litert", verify=verify, precision=precision)
        ways = sorted(set(facts.dispatch.values()))
        cost = analysis.profile(model)
        files.append(File(path, ways[0] if ways else DENSE, cost.flops, cost.flops_paper))
    return files


def make_candidate(file: File, threads: int, images: list[np.ndarray]) -> Callable[[], Ran]:
    """Returns a function that runs the next of the images through a file.

    Args:
        file: the model.
        threads: of the interpreter.
        images: each `[1, height, width, channels]`.
    """
    interpreter = device_memory.open_interpreter(file.path, threads)
    index = interpreter.get_input_details()[0]["index"]
    outputs = interpreter.get_output_details()
    experts = [facts["index"] for facts in outputs if facts["dtype"] == np.int32]
    turns = itertools.cycle(images)

    def run() -> Ran:
        interpreter.set_tensor(index, next(turns))
        interpreter.invoke()
        return Ran(interpreter, experts[0] if experts else None)

    return run


def random_images(model_file: File, settings: DeviceSettings) -> list[np.ndarray]:
    """Returns the images `[1, height, width, channels]` that go through a file, in [-1, 1].

    Each has a tint of its own, or all would look the same to a router.

    Args:
        model_file: tells their size.
        settings: the table's.
    """
    details = device_memory.open_interpreter(model_file.path, 1).get_input_details()[0]
    random = np.random.default_rng(settings.seed)
    found = []
    for _ in range(settings.images):
        tint = random.uniform(-1, 1, (1, 1, 1, details["shape"][-1]))
        noise = random.uniform(-1, 1, details["shape"])
        found.append((0.7 * tint + 0.3 * noise).astype("float32"))
    return found


def distinct_experts(file: File, images: list[np.ndarray]) -> int | None:
    """Returns how many choices of experts the images make; `None` for a dense model.

    Args:
        file: the model.
        images: each `[1, height, width, channels]`.
    """
    run = make_candidate(file, 1, images)
    choices = [run().numpy() for _ in images]
    return None if choices[0] is None else len({tuple(c.ravel().tolist()) for c in choices})


def percentiles(samples: Samples) -> dict[str, float]:
    """Returns the wall times in milliseconds that 50, 90 and 99% of the runs do not exceed.

    Args:
        samples: of one candidate.

    Example:
        >>> percentiles(Samples(wall=(0.001, 0.002, 0.003), cpu=(0.0, 0.0, 0.0)))["p50"]
        2.0
    """
    values = np.percentile(np.array(samples.wall) * 1e3, (50, 90, 99))
    return {f"p{q}": float(value) for q, value in zip((50, 90, 99), values, strict=True)}


def measure_files(
    name: str, precision: str, settings: DeviceSettings, progress: WorkProgress
) -> list[dict[str, Any]]:
    """Measures one preset in one precision: its dense twin, and each form, at each thread count.

    Args:
        name: of the preset.
        precision: of the weights.
        settings: the table's.
        progress: is told of each piece of work.

    Returns:
        A row of the table for each file and thread count, the dense twin's first.
    """
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        files = write_files(name, precision, settings, Path(folder), progress)
        images = random_images(files[0], settings)
        for threads in settings.threads:
            progress.begin(f"{name} {precision}, {threads} threads", _WORK_OF_TIMING)
            found = {file.path.name: make_candidate(file, threads, images) for file in files}
            taken = interleave(found, settings.rounds, settings.warmup, on_round=progress.advance)
            for file in files:
                samples = taken[file.path.name]
                peak = device_memory.measure(file.path, threads) if settings.memory else None
                rows.append(
                    {
                        "model": name,
                        "precision": precision,
                        "form": file.form,
                        "threads": threads,
                        "wall": percentiles(samples),
                        "cpu_ms": samples.milliseconds()["cpu_ms"],
                        "ratio": samples.over(taken[files[0].path.name])._asdict(),
                        "file_bytes": file.path.stat().st_size,
                        "memory_bytes": peak,
                        "flops": file.flops,
                        "flops_paper": file.flops_paper,
                        "distinct_experts": distinct_experts(file, images),
                    }
                )
    return rows


def total_work(settings: DeviceSettings) -> float:
    """Returns the work of the whole table, for the progress line."""
    files = _WORK_OF_FILE * (1 + len(settings.forms))
    each = files + _WORK_OF_TIMING * len(settings.threads)
    return each * len(settings.models) * len(settings.precisions)


def measure_device(
    settings: DeviceSettings, progress: WorkProgress, on_row: Callable[[dict[str, Any]], None]
) -> list[dict[str, Any]]:
    """Measures the table.

    Args:
        settings: the table's.
        progress: is told of each piece of work.
        on_row: called with each row as soon as it is measured.

    Returns:
        The rows.
    """
    rows = []
    for name in settings.models:
        for precision in settings.precisions:
            for row in measure_files(name, precision, settings, progress):
                rows.append(row)
                on_row(row)
    return rows
