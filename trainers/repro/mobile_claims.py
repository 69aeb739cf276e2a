"""The claims of Mobile V-MoE, judged."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from keras_vmoe.trainers.repro.claims import Claim
from keras_vmoe.trainers.repro.mobile_runs import (
    ABLATED,
    DENSE,
    EXPERTS,
    IMAGE,
    MOBILE,
    MOBILE_ABLATED,
    MOE_LAYERS,
    NUM_EXPERTS,
    NUM_MOE_LAYERS,
    PAIRED,
    RANDOM,
    SCALES,
    SELECTED,
    TOKEN,
    twin,
    with_experts,
    with_layers,
    with_selected,
)
from keras_vmoe.trainers.repro.paired import difference, estimate

if TYPE_CHECKING:
    from keras_vmoe.trainers.repro.mobile import Measured

DENSE_ABLATED = twin(ABLATED, DENSE)


def claims(found: Measured) -> list[Claim]:
    """Judges the paper's claims.

    Args:
        found: what was measured.
    """
    return [
        *_scale_claims(found),
        *_expert_claims(found),
        *_layer_claims(found),
        *_selected_claims(found),
        *_routing_claims(found),
    ]


def _beats(words: str, left: Sequence[float], right: Sequence[float]) -> Claim:
    """A comparison over the seeds that both were trained with."""
    count = min(len(left), len(right))
    left, right = left[:count], right[:count]
    both = f"{estimate(left).words()} against {estimate(right).words()}"
    return Claim(words, both, difference(left, right))


def _scale_claims(found: Measured) -> list[Claim]:
    result = []
    for scale in SCALES:
        sparse, dense = (found.accuracy[twin(scale, kind)] for kind in (MOBILE, DENSE))
        words = f"{scale.name}: Mobile V-MoE beats its dense twin at equal FLOPs"
        result.append(_beats(words, sparse, dense))
    small, large = (
        [
            sparse - dense
            for sparse, dense in zip(
                found.accuracy[twin(scale, MOBILE)],
                found.accuracy[twin(scale, DENSE)],
                strict=True,
            )
        ]
        for scale in PAIRED
    )
    names = [scale.name for scale in PAIRED]
    result.append(_beats(f"the gain is larger for {names[0]} than for {names[1]}", small, large))
    return result


def _expert_claims(found: Measured) -> list[Claim]:
    dense, base = found.accuracy[DENSE_ABLATED], found.accuracy[MOBILE_ABLATED]
    result = []
    for number in EXPERTS:
        if number != NUM_EXPERTS:
            other = found.accuracy[with_experts(number)]
            result += [
                _beats(f"E={number} beats the dense twin", other, dense),
                _beats(f"E={NUM_EXPERTS} beats E={number}", base, other),
            ]
    few, many = (found.router[with_experts(number)] for number in (EXPERTS[0], EXPERTS[-1]))
    words = f"the router is more accurate with E={EXPERTS[0]} than with E={EXPERTS[-1]}"
    return [*result, _beats(words, few, many)]


def _layer_claims(found: Measured) -> list[Claim]:
    dense, base = found.accuracy[DENSE_ABLATED], found.accuracy[MOBILE_ABLATED]
    fewer, more = MOE_LAYERS[0], MOE_LAYERS[-1]
    of = f"of {ABLATED.num_layers}"
    result = [
        _beats(f"L={fewer} beats the dense twin", found.accuracy[with_layers(fewer)], dense),
        _beats(f"L={more} {of} blocks loses to the dense twin",
               dense, found.accuracy[with_layers(more)]),
    ]  # fmt: skip
    for number in (fewer, more):
        other = found.accuracy[with_layers(number)]
        result.append(_beats(f"L={NUM_MOE_LAYERS} beats L={number}", base, other))
    for left, right in pairwise(MOE_LAYERS):
        routers = (found.router[with_layers(number)] for number in (left, right))
        result.append(_beats(f"the router is more accurate with L={left} than L={right}", *routers))
    return result


def _selected_claims(found: Measured) -> list[Claim]:
    result = []
    for k in SELECTED[1:]:
        sparse, dense = (found.accuracy[with_selected(k, kind)] for kind in (MOBILE, DENSE))
        words = f"k={k} beats a dense model with MLPs {k} times wider, of equal FLOPs"
        result.append(_beats(words, sparse, dense))
    for left, right in pairwise(SELECTED):
        more, less = (found.accuracy[with_selected(k)] for k in (right, left))
        result.append(_beats(f"k={right} beats k={left}", more, less))
    return result


def _routing_claims(found: Measured) -> list[Claim]:
    base, dense = found.accuracy[MOBILE_ABLATED], found.accuracy[DENSE_ABLATED]
    shuffled, image, token = (found.accuracy[kind] for kind in (RANDOM, IMAGE, TOKEN))
    return [
        _beats("super-classes beat random super-classes", base, shuffled),
        _beats("super-classes beat routing learned per image", base, image),
        _beats("routing learned per image beats the dense twin", image, dense),
        _beats("random super-classes lose to the dense twin", dense, shuffled),
        _beats("routing learned per token beats super-classes per image", token, base),
        _beats(
            "the router is more accurate on super-classes than on random ones",
            found.router[MOBILE_ABLATED],
            found.router[RANDOM],
        ),
    ]
