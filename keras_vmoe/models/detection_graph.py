"""The feature pyramid and the heads of a detector, from layers of Keras.

Both libraries that have them fix what is free here: KerasCV the levels and the widths, KerasHub's
public model the widths.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras


def _convolution(name: str, width: int, size: int, policy: Any, **options: Any) -> Any:
    return keras.layers.Conv2D(width, size, padding="same", dtype=policy, name=name, **options)


def pyramid(maps: Mapping[str, Any], levels: tuple[int, ...], width: int, policy: Any) -> list[Any]:
    """Returns maps of one width, level after level: each knows of the coarser ones.

    Args:
        maps: of a backbone, by the names of their levels.
        levels: those of the result, of which the first are the backbone's; the others are made
            by convolutions of stride 2.
        width: channels of the result.
        policy: the dtype policy.

    Reference: Lin et al. 2016, arXiv 1612.03144, section 3; Lin et al. 2017, arXiv 1708.02002,
    footnote 2 (levels 6 and 7).
    """
    inner = [level for level in levels if f"P{level}" in maps]
    found: dict[int, Any] = {}
    for level in reversed(inner):
        lateral = _convolution(f"fpn_lateral_{level}", width, 1, policy)(maps[f"P{level}"])
        if level + 1 in found:
            up = keras.layers.UpSampling2D(2, dtype=policy, name=f"fpn_up_{level}")
            add = keras.layers.Add(dtype=policy, name=f"fpn_sum_{level}")
            lateral = add([lateral, up(found[level + 1])])
        found[level] = lateral
    for level in inner:
        found[level] = _convolution(f"fpn_output_{level}", width, 3, policy)(found[level])
    for level in levels[len(inner) :]:
        below = found[level - 1]
        if level - 1 not in inner:
            below = keras.layers.ReLU(dtype=policy, name=f"fpn_relu_{level}")(below)
        found[level] = _convolution(f"fpn_coarser_{level}", width, 3, policy, strides=2)(below)
    return [found[level] for level in levels]


def head(
    kind: str, width: int, depth: int, outputs: int, bias: float, policy: Any
) -> list[keras.layers.Layer]:
    """Returns the convolutions of a head, the same for all levels.

    Args:
        kind: what it tells, for the names.
        width: channels before the last convolution.
        depth: convolutions before it.
        outputs: numbers that are told at each place.
        bias: that they start from.
        policy: the dtype policy of those before the last one, which is in float32, so that no
            offset or logit is rounded to half precision.
    """
    inner = [
        _convolution(f"{kind}_head_{place}", width, 3, policy, activation="relu")
        for place in range(depth)
    ]
    # Small weights at the end: a fresh head says everywhere what its bias does.
    last = _convolution(
        f"{kind}_head_output",
        outputs,
        3,
        "float32",
        kernel_initializer=keras.initializers.RandomNormal(stddev=0.01),
        bias_initializer=keras.initializers.Constant(bias),
    )
    return [*inner, last]


def on_all_levels(
    kind: str, features: list[Any], convolutions: list[keras.layers.Layer], values: int
) -> Any:
    """Returns what a head says of all anchors, `[b, anchors, values]`, in float32.

    Args:
        kind: what it tells, for the names.
        features: of `pyramid`.
        convolutions: of `head`.
        values: numbers of one anchor.
    """
    found = []
    for number, features_of_level in enumerate(features):
        for convolution in convolutions:
            features_of_level = convolution(features_of_level)
        rows = keras.layers.Reshape((-1, values), dtype="float32", name=f"{kind}_rows_{number}")
        found.append(rows(features_of_level))
    join = keras.layers.Concatenate(axis=1, dtype="float32", name=kind)
    return (
        join(found)
        if len(found) > 1
        else keras.layers.Identity(dtype="float32", name=kind)(found[0])
    )
