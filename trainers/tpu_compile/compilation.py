"""One step compiled for one slice, and what is told of it."""

from __future__ import annotations

import math
import time
from typing import Any, NamedTuple

from keras_vmoe import distribution, tables
from keras_vmoe.distribution import StepCost, Topology
from keras_vmoe.distribution.topology import GIB
from keras_vmoe.trainers.tpu_compile.steps import Steps

WHOLE, BY_BLOCKS = "whole", "2 and 4 blocks"
# What the compiler leaves to programs: 15.75 of 16 GiB.
USABLE = 15.75 / 16


class Compilation(NamedTuple):
    """One step on one slice.

    Attributes:
        topology: the slice.
        mesh: of its devices.
        cost: what a device needs.
        how: `WHOLE`, or `BY_BLOCKS`.
        seconds: that it took.
        gathered: all-gathers of expert kernels; None: not known.
    """

    topology: Topology
    mesh: str
    cost: StepCost
    how: str
    seconds: float
    gathered: int | None

    @property
    def fits(self) -> bool:
        """Whether a device has the memory."""
        return self.cost.fits and self.cost.hbm <= USABLE * self.topology.hbm

    def to_dict(self) -> dict[str, Any]:
        """What `--json` prints."""
        c = self.cost
        return {
            "topology": str(self.topology),
            "accelerator_type": self.topology.accelerator_type,
            "chips": self.topology.chips,
            "mesh": self.mesh,
            "how": self.how,
            "fits": self.fits,
            "hbm": self.topology.hbm,
            "parameters": c.parameters,
            "optimizer": c.optimizer,
            "other": c.other,
            "flops": None if math.isnan(c.flops) else c.flops,
            "bytes_accessed": None if math.isnan(c.bytes_accessed) else c.bytes_accessed,
            "collectives": {
                # Of small models no number of exchanges follows, but their bytes do.
                kind: {"bytes": size, **({"count": count} if self.how == WHOLE else {})}
                for kind, (count, size) in c.exchanged().items()
            },
            "expert_kernels_gathered": self.gathered,
            "seconds": round(self.seconds, 1),
        }


def measure(
    steps: Steps, topology: Topology, mesh: distribution.JaxMesh, by_blocks: bool, quick: bool
) -> Compilation:
    """Compiles a step for a slice.

    Args:
        steps: what makes it.
        topology: the slice.
        mesh: of its devices.
        by_blocks: compile models of 2 and 4 blocks, and extrapolate; else the whole.
        quick: see `distribution.compile_step`.
    """
    began, name = time.monotonic(), mesh.words

    def one(blocks: tuple[int, int] | None = None) -> StepCost:
        return distribution.compile_step(steps.step(mesh, blocks), steps.batch, quick)

    if not by_blocks:
        cost = one()
        gathered = len(cost.gathered(steps.kernels)) if cost.fits else None
        return Compilation(topology, name, cost, WHOLE, time.monotonic() - began, gathered)
    sparse, dense = steps.sparse_blocks, steps.blocks - steps.sparse_blocks
    small = [(2, 1), (4, 2)] if sparse else [(2, 0), (4, 0)]
    if sparse and sparse != dense:
        small.append((4, 1))
    costs: list[tuple[tuple[int, ...], StepCost]] = []
    for blocks, experts in small:
        cost = one((blocks, experts))
        if not cost.fits:
            # The whole has its own variables, and no less of the rest.
            parameters, optimizer = distribution.static_bytes(steps.step(mesh))
            cost = cost._replace(parameters=parameters, optimizer=optimizer)
            return Compilation(topology, name, cost, BY_BLOCKS, time.monotonic() - began, None)
        costs.append(((1, blocks - experts, experts)[: len(small)], cost))
    cost = distribution.scaled(costs, (1, dense, sparse)[: len(small)])
    gathered = sum(len(some.gathered(steps.kernels)) for _, some in costs)
    seconds = time.monotonic() - began
    return Compilation(topology, name, cost, BY_BLOCKS, seconds, gathered)


def report(row: Compilation) -> str:
    """Returns what the command prints of a slice.

    Args:
        row: the slice, compiled for.
    """
    topology, cost = row.topology, row.cost
    room = topology.hbm
    verdict = "fits" if row.fits else "does not fit"
    unit, name = (GIB, "GiB") if cost.hbm >= GIB else (2**20, "MiB")
    lines = [
        f"slice     {topology} ({topology.accelerator_type}): {chips(topology)} of "
        f"{room / GIB:g} GiB; mesh {row.mesh}",
        f"compiled  {row.how}, in {row.seconds:.0f} s",
        "",
        *tables.aligned(
            [
                ("memory of a device", name),
                ("parameters", f"{cost.parameters / unit:.2f}"),
                ("optimizer", f"{cost.optimizer / unit:.2f}"),
                ("activations, gradients, buffers", f"{cost.other / unit:.2f}"),
                ("all", f"{cost.hbm / unit:.2f}"),
            ],
            num_left=1,
        ),
        f"{verdict}: {cost.hbm / unit:.2f} {name} of {room / GIB:g} GiB",
    ]
    if not cost.fits:
        return "\n".join(lines)
    gathered = f"{row.gathered} times" if row.gathered else "none"
    return "\n".join(
        [
            *lines,
            "",
            f"a step of a device: {_operations(cost.flops)}, "
            f"{cost.bytes_accessed / 1e9:,.2f} GB read and written",
            "",
            *_exchanges(row),
            f"kernels of experts gathered: {gathered}",
        ]
    )


def _exchanges(row: Compilation) -> list[str]:
    exchanged = row.cost.exchanged().items()
    if not exchanged:
        return ["exchanges between devices: none"]
    cells = [
        (kind, f"{count if row.how == WHOLE else ''}", f"{size / 1e6:,.1f}")
        for kind, (count, size) in exchanged
    ]
    return tables.aligned([("exchanges", "number", "MB a device"), *cells], num_left=1)


def _operations(flops: float) -> str:
    return f"{flops / 1e12:,.1f} TFLOP" if flops >= 1e12 else f"{flops / 1e9:,.1f} GFLOP"


def chips(topology: Topology) -> str:
    """Returns how many chips a slice has, in words.

    Args:
        topology: the slice.
    """
    return "1 chip" if topology.chips == 1 else f"{topology.chips} chips"
