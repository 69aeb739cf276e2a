"""What a training step will need on its devices, read from the compiler's result."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    import keras

    from keras_vmoe.distribution.jax_training import JaxTrainStep

COLLECTIVES = ("all-to-all", "all-gather", "all-reduce", "reduce-scatter", "collective-permute")
_RESULT = re.compile(rf"^\s*(?:ROOT )?%\S+ = (.*?) ({'|'.join(COLLECTIVES)})(-start)?\(")
_ARRAY = re.compile(r"\b(pred|[a-z]+\d+\w*)\[([\d,]*)\]")
_BITS = re.compile(r"\d+")
_USED = re.compile(r"Used ([\d.]+)([KMGT]?) of [\d.]+[KMGT]? hbm", re.IGNORECASE)
_TEMPORARIES = re.compile(r"required for HLO temporaries \(([\d.]+)([KMGT]?)\)")
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


class Collective(NamedTuple):
    """One exchange between devices.

    Attributes:
        kind: one of `COLLECTIVES`.
        shapes: of its results on one device, as (dtype, shape).
    """

    kind: str
    shapes: tuple[tuple[str, tuple[int, ...]], ...]

    @property
    def bytes(self) -> int:
        """Bytes of the results on one device."""
        return sum(math.prod(shape) * _bits(dtype) // 8 for dtype, shape in self.shapes)


class StepCost(NamedTuple):
    """What one training step takes on each device.

    Attributes:
        parameters: bytes of the model's variables.
        optimizer: bytes of the optimizer's.
        other: bytes of activations, gradients, buffers, the program and padding: the rest.
        flops: floating-point operations, as the compiler counts them.
        bytes_accessed: bytes read and written, as the compiler counts them.
        collectives: exchanges between devices, in the order of the program; where the compiler
            gave up, of none.
        fits: whether the compiler found room for it all.
    """

    parameters: int
    optimizer: int
    other: int
    flops: float
    bytes_accessed: float
    collectives: tuple[Collective, ...]
    fits: bool

    @property
    def hbm(self) -> int:
        """Bytes of memory in all."""
        return self.parameters + self.optimizer + self.other

    def exchanged(self) -> dict[str, tuple[int, int]]:
        """For each kind of collective that occurs, how many there are and their bytes."""
        found = {kind: [c for c in self.collectives if c.kind == kind] for kind in COLLECTIVES}
        return {k: (len(some), sum(c.bytes for c in some)) for k, some in found.items() if some}

    def gathered(self, shapes: Iterable[Sequence[int]]) -> list[Collective]:
        """The all-gathers that bring together arrays of some shapes, or stacks of them.

        Args:
            shapes: such as the `[d, h]` of an expert's kernel.
        """
        wanted = {tuple(shape) for shape in shapes}
        return [
            c
            for c in self.collectives
            if c.kind == "all-gather" and any(tuple(s[-2:]) in wanted for _, s in c.shapes)
        ]


def compile_step(
    step: JaxTrainStep,
    batch: Mapping[str, tuple[tuple[int, ...], str]],
    quick: bool = False,
) -> StepCost:
    """Compiles a training step for the devices of its mesh, which need not be there.

    Args:
        step: its model and optimizer may be without values.
        batch: for each part of a batch its shape and dtype, see `JaxTrainStep.lower`.
        quick: have the compiler try less hard. It takes a fifth of the time and finds a program
            that needs more memory, rather than less.

    Returns:
        What it takes on each device.
    """
    import jax

    lowered = step.lower(batch)
    options = {"exec_time_optimization_effort": -1.0} if quick else {}
    parameters, optimizer = static_bytes(step)
    try:
        compiled = lowered.compile(compiler_options=options)
    except jax.errors.JaxRuntimeError as error:
        rest = _wanted(str(error), parameters + optimizer)
        if rest is None:
            raise
        return StepCost(parameters, optimizer, rest, math.nan, math.nan, (), False)
    memory, cost = compiled.memory_analysis(), compiled.cost_analysis()
    used = (
        memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
        + memory.temp_size_in_bytes
        + memory.generated_code_size_in_bytes
    )
    return StepCost(
        parameters,
        optimizer,
        used - parameters - optimizer,
        cost.get("flops", math.nan),
        cost.get("bytes accessed", math.nan),
        tuple(find_collectives(compiled.as_text())),
        True,
    )


def static_bytes(step: JaxTrainStep) -> tuple[int, int]:
    """Bytes of the model's and of the optimizer's variables on a device; nothing is compiled.

    Args:
        step: its model and optimizer may be without values.
    """
    return _bytes(step, step.model.variables), _bytes(step, step.optimizer.variables)


def _bytes(step: JaxTrainStep, variables: Iterable[keras.Variable]) -> int:
    shapes = ((step.layout_of(v).shard_shape(tuple(v.shape)), v.dtype) for v in variables)
    return sum(math.prod(shape) * np.dtype(dtype).itemsize for shape, dtype in shapes)


def _wanted(message: str, variables: int) -> int | None:
    """The bytes beside the variables, from the compiler's message that there is no room."""
    if found := _TEMPORARIES.search(message):
        return _amount(found)
    found = _USED.search(message)
    return None if found is None else _amount(found) - variables


def _amount(found: re.Match[str]) -> int:
    return int(float(found[1]) * _UNITS[found[2].upper()])


def find_collectives(text: str) -> list[Collective]:
    """The exchanges between devices in a compiled program.

    Args:
        text: of the program, as `jax.stages.Compiled.as_text` gives it.

    Example:

    >>> from keras_vmoe.distribution import compiled
    >>> line = "  %all-to-all.3 = bf16[8,4,16]{2,1,0} all-to-all(%x), dimensions={0}"
    >>> [(c.kind, c.bytes) for c in compiled.find_collectives(line)]
    [('all-to-all', 1024)]
    """
    found = []
    for line in text.splitlines():
        match = _RESULT.match(line)
        if match:
            arrays = [(dtype, _shape(sizes)) for dtype, sizes in _ARRAY.findall(match[1])]
            if match[3] and match[2] != "all-reduce":
                # What begins has the operands before the results, and counters after them; but of
                # all-reduce the results alone.
                arrays = [a for a in arrays if a[1]]
                arrays = arrays[len(arrays) // 2 :]
            found.append(Collective(match[2], tuple(arrays)))
    return found


def _shape(sizes: str) -> tuple[int, ...]:
    return tuple(int(size) for size in sizes.split(",") if size)


def _bits(dtype: str) -> int:
    found = _BITS.search(dtype)
    return 8 if found is None else int(found[0])


def scaled(
    costs: Sequence[tuple[Sequence[float], StepCost]], features: Sequence[float]
) -> StepCost:
    """What a larger model takes, from those of smaller ones, linear in some counts.

    Args:
        costs: as many as there are counts; each with the counts of its model, such as
            `(1, dense blocks, sparse blocks)`.
        features: the counts of the larger model.

    Returns:
        A `StepCost` without collectives' shapes: of each kind one, of that many bytes in all. Its
        memory is that of each smaller model at least: where it is short, the compiler makes do
        with less for the larger ones, by computing things again.
    """
    weights = np.linalg.solve(np.array([c for c, _ in costs], float).T, np.array(features, float))

    def mix(values: Iterable[float]) -> float:
        return float(np.dot(weights, list(values)))

    steps = [cost for _, cost in costs]
    kinds = {kind for cost in steps for kind in cost.exchanged()}
    collectives = [
        Collective(
            kind, (("s8", (round(mix(c.exchanged().get(kind, (0, 0))[1] for c in steps)),)),)
        )
        for kind in COLLECTIVES
        if kind in kinds
    ]
    return StepCost(
        round(mix(c.parameters for c in steps)),
        round(mix(c.optimizer for c in steps)),
        max(round(mix(c.other for c in steps)), *(c.other for c in steps)),
        mix(c.flops for c in steps),
        mix(c.bytes_accessed for c in steps),
        tuple(collectives),
        all(c.fits for c in steps),
    )
