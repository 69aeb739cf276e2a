"""Slices of TPUs by name, and their devices for the compiler, on a machine without a TPU."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from keras_vmoe.ops.validation import require

if TYPE_CHECKING:
    import jax

GIB = 2**30


class Family(NamedTuple):
    """A generation of TPUs, as Cloud TPU's documentation describes it.

    Attributes:
        hbm: memory of a chip in bytes.
        slices: shapes of it, smallest first.
        accelerator: what its accelerator types begin with.
        cores: how much a chip adds to the number in an accelerator type: 2 where that counts cores.
    """

    hbm: int
    slices: tuple[str, ...]
    accelerator: str
    cores: int


_FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_CUBES = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x16")

FAMILIES = {
    "v4": Family(32 * GIB, _CUBES, "v4", 2),
    "v5e": Family(16 * GIB, _FLAT, "v5litepod", 1),
    "v5p": Family(95 * GIB, _CUBES, "v5p", 2),
    "v6e": Family(32 * GIB, _FLAT, "v6e", 1),
}

_ACCELERATOR_TYPE = re.compile(r"v\d\w*-\d+")

# The compiler asks the machine which TPU it is on, and waits for an answer, unless it is told.
ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    # Without a TPU there is nothing that two processes could both take.
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "true",
}


class Topology(NamedTuple):
    """A slice of TPUs.

    Attributes:
        family: such as `"v5e"`.
        shape: such as `"4x8"`.

    Example:

    >>> from keras_vmoe.distribution import Topology
    >>> slice = Topology.parse("v4:2x2x2")
    >>> slice.chips, slice.hbm // 2**30, slice.accelerator_type
    (8, 32, 'v4-16')
    """

    family: str
    shape: str

    @classmethod
    def parse(cls, text: str) -> Topology:
        """The slice of a name.

        Args:
            text: family and shape, such as `"v5e:4x8"`.

        Raises:
            ValueError: an unknown family or shape; the message lists those that are known.
        """
        family, _, shape = text.partition(":")
        require(
            family in FAMILIES,
            f"topology must begin with one of {', '.join(FAMILIES)}, as v5e:4x8 does. "
            f"Received: topology={text!r}{_hint(text)}",
        )
        slices = FAMILIES[family].slices
        require(
            shape in slices,
            f"topology must be one of the slices known here, of {family} {', '.join(slices)}. "
            f"Received: topology={text!r}",
        )
        return cls(family, shape)

    @property
    def chips(self) -> int:
        """The number of chips."""
        return math.prod(map(int, self.shape.split("x")))

    @property
    def hbm(self) -> int:
        """Bytes of memory of a chip."""
        return FAMILIES[self.family].hbm

    @property
    def accelerator_type(self) -> str:
        """What Cloud TPU calls it, and `tpu/create.sh` takes: `"v5litepod-8"`."""
        family = FAMILIES[self.family]
        return f"{family.accelerator}-{self.chips * family.cores}"

    def devices(self) -> list[jax.Device]:
        """Devices that the TPU compiler can compile for, and nothing can run on: one a chip.

        Sets `ENVIRONMENT` in this process, where it is not set, which is for machines without a
        TPU: elsewhere use a process of its own, as `keras-vmoe tpu-compile` does.

        Raises:
            ImportError: without `jax[tpu]`, which brings the compiler.
        """
        for name, value in ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        try:
            import libtpu  # noqa: F401
            from jax.experimental import topologies
        except ImportError as error:
            raise ImportError(
                "compiling for TPU needs its compiler: pip install 'keras-vmoe[tpu-compile]'"
            ) from error
        options: dict[str, object] = {}
        if self.chips == 1:
            # The compiler takes a host for one of four chips unless it is told.
            options["chips_per_host_bounds"] = (1, 1, 1)
        if self.family == "v4":
            # The two cores of a chip as one device, with all of its memory, as JAX has it there.
            options["chip_config_name"] = "megacore"
        return list(topologies.get_topology_desc(str(self), "tpu", **options).devices)

    def __str__(self) -> str:
        return f"{self.family}:{self.shape}"


def slices_of(family: str) -> Iterator[Topology]:
    """All slices of a family, smallest first.

    Args:
        family: such as `"v5e"`.

    Raises:
        ValueError: an unknown family.

    Example:

    >>> from keras_vmoe.distribution import topology
    >>> [slice.chips for slice in topology.slices_of("v5e")]
    [1, 4, 8, 16, 32, 64, 128, 256]
    """
    require(
        family in FAMILIES,
        f"family must be one of {', '.join(FAMILIES)}. Received: family={family!r}{_hint(family)}",
    )
    return (Topology(family, shape) for shape in FAMILIES[family].slices)


def _hint(text: str) -> str:
    """What was meant by an accelerator type in the place of a slice."""
    if not _ACCELERATOR_TYPE.fullmatch(text):
        return ""
    known = (Topology(name, shape) for name, family in FAMILIES.items() for shape in family.slices)
    meant = [topology for topology in known if topology.accelerator_type == text]
    example = meant[0] if meant else Topology("v5e", "2x4")
    return f"; the accelerator type {example.accelerator_type} is the slice {example}"
