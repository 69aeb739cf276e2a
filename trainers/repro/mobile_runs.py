"""The runs of `keras-vmoe repro mobile`: which models, of which size, with which super-classes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from keras_vmoe.trainers.repro.training import Training

DENSE_FILE, SPARSE_FILE = "repro/mobile_dense.gin", "repro/mobile.gin"
TOKEN_FILE = "repro/mobile_token.gin"
DENSE, MOBILE = "dense", "mobile"
RANDOM, IMAGE, TOKEN = "random", "learned_image", "learned_token"


class Scale(NamedTuple):
    """The size of a model.

    Attributes:
        num_layers: blocks.
        width: of the model; MLPs are four times as wide, and heads take 16 of it where
            that gives two or more.
    """

    num_layers: int
    width: int

    @property
    def name(self) -> str:
        """Such as "4x32", as the paper writes it."""
        return f"{self.num_layers}x{self.width}"

    def bindings(self) -> tuple[str, ...]:
        """What a gin file says of it."""
        sizes = {
            "num_layers": self.num_layers,
            "width": self.width,
            "mlp_dim": 4 * self.width,
            "num_heads": max(self.width // 16, 2),
        }
        return tuple(f"MobileVMoE.{name}={size}" for name, size in sizes.items())


# Of one depth: deeper ones learn little in so few steps.
SCALES = (Scale(4, 24), Scale(4, 32), Scale(4, 48), Scale(4, 64))
# Trained with every seed; the others with the first alone.
PAIRED = (Scale(4, 32), Scale(4, 64))
ABLATED = Scale(4, 32)
# What gin/repro/mobile.gin says, and what the ablations put in its place.
NUM_EXPERTS, NUM_MOE_LAYERS, NUM_SELECTED = 10, 2, 1
EXPERTS, MOE_LAYERS, SELECTED = (5, 10, 20), (1, 2, 3), (1, 2, 3)


class Kind(NamedTuple):
    """One kind of run.

    Attributes:
        name: of its folders.
        words: what people call it.
        gin_file: of the run.
        scale: size of the model.
        bindings: what differs from the gin file.
        num_experts: super-classes that the router is taught; 0 for none.
        random: whether they are random.
        paired: trained with every seed.
    """

    name: str
    words: str
    gin_file: str
    scale: Scale = ABLATED
    bindings: tuple[str, ...] = ()
    num_experts: int = NUM_EXPERTS
    random: bool = False
    paired: bool = False

    @property
    def is_dense(self) -> bool:
        """Whether it has no experts."""
        return self.gin_file == DENSE_FILE


def twin(scale: Scale, kind: str) -> str:
    """The name of the dense or the sparse run of a scale.

    Example:
        >>> twin(Scale(4, 32), DENSE)
        'dense_4x32'
    """
    return f"{kind}_{scale.name}"


def with_experts(number: int) -> str:
    """The name of the run with so many experts."""
    return MOBILE_ABLATED if number == NUM_EXPERTS else f"experts_{number}"


def with_layers(number: int) -> str:
    """The name of the run with so many MoE layers."""
    return MOBILE_ABLATED if number == NUM_MOE_LAYERS else f"layers_{number}"


def with_selected(number: int, kind: str = MOBILE) -> str:
    """The name of the run with so many experts an image, or MLPs as many times wider."""
    if number == NUM_SELECTED:
        return twin(ABLATED, kind)
    return f"selected_{number}" + ("_dense" if kind == DENSE else "")


MOBILE_ABLATED = twin(ABLATED, MOBILE)


def _kinds() -> Iterable[Kind]:
    # The largest first: the other kinds wait for the super-classes that it gives.
    for scale in reversed(SCALES):
        paired = scale in PAIRED
        name = twin(scale, DENSE)
        yield Kind(name, f"dense {scale.name}", DENSE_FILE, scale, num_experts=0, paired=paired)
    for k in SELECTED[1:]:
        words = f"dense, MLPs {k} times wider"
        bound = (f"MobileVMoE.num_selected={k}",)
        yield Kind(with_selected(k, DENSE), words, DENSE_FILE, bindings=bound, num_experts=0)
    for scale in reversed(SCALES):
        paired = scale in PAIRED
        name = twin(scale, MOBILE)
        yield Kind(name, f"Mobile V-MoE {scale.name}", SPARSE_FILE, scale, paired=paired)
    yield Kind(RANDOM, "random super-classes", SPARSE_FILE, random=True, paired=True)
    yield Kind(IMAGE, "learned per image", SPARSE_FILE, num_experts=0, paired=True)
    yield Kind(TOKEN, "learned per token", TOKEN_FILE, num_experts=0, paired=True)
    for number in EXPERTS:
        if number != NUM_EXPERTS:
            bound = (f"MobileVMoE.num_experts={number}",)
            name = with_experts(number)
            yield Kind(name, f"E={number}", SPARSE_FILE, bindings=bound, num_experts=number)
    for number in MOE_LAYERS:
        if number != NUM_MOE_LAYERS:
            bound = (f"MobileVMoE.num_moe_layers={number}",)
            yield Kind(with_layers(number), f"L={number}", SPARSE_FILE, bindings=bound)
    for k in SELECTED[1:]:
        bound = (f"MobileVMoE.num_selected={k}",)
        yield Kind(with_selected(k), f"k={k}", SPARSE_FILE, bindings=bound)


KINDS = {kind.name: kind for kind in _kinds()}
# Whose confusion the super-classes are found in.
TEACHER = twin(SCALES[-1], DENSE)


def seeds_of(kind: Kind, seeds: Sequence[int]) -> list[int]:
    """The seeds that a kind of run is trained with."""
    return list(seeds if kind.paired else seeds[:1])


def num_runs(seeds: int) -> int:
    """The number of runs for a number of seeds."""
    return sum(len(seeds_of(kind, range(seeds))) for kind in KINDS.values())


def trainings(
    kinds: Sequence[str],
    out: Path,
    seeds: Sequence[int],
    bindings: Sequence[str],
    superclasses: Mapping[str, Sequence[int]] | None = None,
) -> list[Training]:
    """The runs of several kinds, seed by seed.

    Args:
        kinds: names of `KINDS`.
        out: the folder of their workdirs.
        seeds: the seeds.
        bindings: further bindings of all of them, which go before the scale.
        superclasses: name of a kind to the super-class of each class; others are taught none.
    """
    runs = []
    for number, seed in enumerate(seeds):
        for kind in (KINDS[name] for name in kinds):
            if number and not kind.paired:
                continue
            words = [*kind.scale.bindings(), *bindings, *kind.bindings]
            if superclasses and kind.name in superclasses:
                ids = ",".join(map(str, superclasses[kind.name]))
                words.append(f"MobileVMoE.superclasses=({ids},)")
            words.append(f"train.seed={seed}")
            workdir = out / f"{kind.name}-{seed}"
            runs.append(
                Training(f"{kind.words}, seed {seed}", kind.gin_file, tuple(words), workdir)
            )
    return runs
