"""Measures of an untrained As-ViT that tell of its accuracy once trained.

Every measure is a function of weights and inputs that are handed in, so that it draws nothing
itself.
"""

from __future__ import annotations

from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from keras_vmoe.autoscale import network
from keras_vmoe.autoscale.gram import ntk_gram
from keras_vmoe.autoscale.jets import JetArithmetic
from keras_vmoe.autoscale.weights import Weights
from keras_vmoe.models import Genotype
from keras_vmoe.ops.validation import require, require_choice

CONVENTIONS = ("code", "paper")
NUM_ANGLES = 10
# Few enough for their activations to stay in the cache.
_ANGLES_AT_ONCE = 3


class Curve(NamedTuple):
    """What a network makes of a circle of images: an entry for each angle.

    Attributes:
        speed: length of the features' derivative.
        curvature: extrinsic curvature, one over the radius of the circle that fits best.
        turning: how fast the direction of the derivative turns, the Gauss map's speed.
        acceleration: length of the features' second derivative.
    """

    speed: np.ndarray
    curvature: np.ndarray | None = None
    turning: np.ndarray | None = None
    acceleration: np.ndarray | None = None


class CurveMeasures(NamedTuple):
    """Integrals over the circle.

    Attributes:
        length: the manifold length L^E.
        curvature: the extrinsic curvature, over the angle.
        gauss_length: the length of the Gauss map's curve.
    """

    length: float
    curvature: float
    gauss_length: float


def draw_circle(rng: np.random.Generator, image_size: int) -> np.ndarray:
    """Two orthonormal images, which span the plane of a circle.

    Args:
        rng: draws the plane, of which every one is as likely.
        image_size: pixels of a side.

    Returns:
        `[2, image_size, image_size, 3]` float32.

    Example:
        >>> axes = draw_circle(np.random.default_rng(0), image_size=32).reshape(2, -1)
        >>> np.allclose(axes @ axes.T, np.eye(2), atol=1e-6)
        True
    """
    gaussian = rng.standard_normal((image_size * image_size * 3, 2))
    axes, _ = np.linalg.qr(gaussian)
    return axes.T.reshape(2, image_size, image_size, 3).astype("float32")


def manifold_length(
    genotype: Genotype | str,
    weights: Weights,
    circle: np.ndarray,
    convention: str = "code",
    num_angles: int = NUM_ANGLES,
) -> float:
    """The length of the curve that a network without LayerNorms makes of a circle, L^E.

    One forward pass gives the derivative of all features: its value and its tangent are carried
    together.

    Args:
        genotype: the network.
        weights: as `draw_weights` gives them.
        circle: `[2, height, width, 3]`, as `draw_circle` gives it: the centre of the circle is 0.
        convention: "code", the published code's: the plain sum of the speed at `num_angles`
            angles from 0 to 2 pi, both included, on a circle of radius 1. "paper": the integral by
            the trapezoid rule at these angles on a circle whose radius is the root of the number
            of pixels and channels. The two rank networks differently where activations are large.
        num_angles: at least 2.

    Returns:
        The length, in units of the features.

    Raises:
        ValueError: an unknown convention, too few angles, a circle whose size or type the network
            does not take, or weights of another network.

    Example:
        >>> genotype = Genotype.parse("4,2,2|2,1,2|2,1,2|2,1,2|16,8")
        >>> from keras_vmoe.autoscale.weights import draw_weights
        >>> rng = np.random.default_rng(0)
        >>> weights, circle = draw_weights(genotype, rng), draw_circle(rng, image_size=32)
        >>> doubled = manifold_length(genotype, weights, 2 * circle)
        >>> doubled > manifold_length(genotype, weights, circle)
        True

    Reference: Chen et al. 2022, arXiv 2202.11921 (As-ViT), section 3.1; Poole et al. 2016.
    """
    curve = trace_curve(genotype, weights, circle, convention, num_angles, order=1)
    return integrate(curve.speed, convention)


def curve_measures(
    genotype: Genotype | str,
    weights: Weights,
    circle: np.ndarray,
    convention: str = "code",
    num_angles: int = NUM_ANGLES,
) -> CurveMeasures:
    """L^E with its companions, the extrinsic curvature and the length of the Gauss map.

    Args:
        genotype: the network.
        weights: as `draw_weights` gives them.
        circle: `[2, height, width, 3]`.
        convention: as for `manifold_length`.
        num_angles: at least 2.

    Raises:
        ValueError: as `manifold_length`.

    Example:
        >>> from keras_vmoe.autoscale.weights import draw_weights
        >>> genotype = Genotype.parse("4,2,2|2,1,2|2,1,2|2,1,2|16,8")
        >>> rng = np.random.default_rng(0)
        >>> weights, circle = draw_weights(genotype, rng), draw_circle(rng, image_size=32)
        >>> found = curve_measures(genotype, weights, circle)
        >>> found.length == manifold_length(genotype, weights, circle), found.curvature > 0
        (True, True)

    Reference: Chen et al. 2022, arXiv 2202.11921 (As-ViT), section 3.1; Poole et al. 2016.
    """
    curve = trace_curve(genotype, weights, circle, convention, num_angles, order=2)
    return CurveMeasures(
        *(integrate(x, convention) for x in (curve.speed, curve.curvature, curve.turning))
    )


def trace_curve(
    genotype: Genotype | str,
    weights: Weights,
    circle: np.ndarray,
    convention: str = "code",
    num_angles: int = NUM_ANGLES,
    order: int = 2,
) -> Curve:
    """The speed of the features along the circle, and with `order=2` how it bends.

    Args:
        genotype: the network.
        weights: as `draw_weights` gives them.
        circle: `[2, height, width, 3]`.
        convention: as for `manifold_length`; here it tells the radius.
        num_angles: from 0 to 2 pi, both included.
        order: of the highest derivative, 1 or 2.

    Raises:
        ValueError: as `manifold_length`.
    """
    genotype = Genotype.parse(genotype)
    require_choice("convention", convention, CONVENTIONS)
    require(num_angles >= 2, f"num_angles must be at least 2. Received: num_angles={num_angles}")
    require_tensorflow()
    network.check_images("circle", circle, genotype, weights)
    # 0 and 2 pi are one point, which is calculated once.
    angles = np.linspace(0, 2 * np.pi, num_angles)[:-1]
    radius = np.sqrt(circle[0].size) if convention == "paper" else 1.0
    arithmetic, tensors = JetArithmetic(order), network.as_tensors(weights)
    found = []
    for start in range(0, num_angles - 1, _ANGLES_AT_ONCE):
        some = angles[start : start + _ANGLES_AT_ONCE]
        # A derivative of a point on the circle is the point a quarter of a turn ahead.
        turned = np.concatenate([some + i * np.pi / 2 for i in range(order + 1)])
        axes = radius * np.stack([np.cos(turned), np.sin(turned)], 1)
        jet = tf.constant(np.tensordot(axes.astype(circle.dtype), circle, 1))
        features = network.pooled_features(jet, genotype, tensors, arithmetic)
        found.append(np.split(features.numpy().astype("float64"), order + 1))
    _, tangents, *bends = (np.concatenate(parts) for parts in zip(*found, strict=True))
    tangents = np.concatenate([tangents, tangents[:1]])
    speed = np.linalg.norm(tangents, axis=1)
    if order == 1:
        return Curve(speed)
    return _bent(tangents, np.concatenate([bends[0], bends[0][:1]]))


def _bent(tangents: np.ndarray, bends: np.ndarray) -> Curve:
    vv, aa = (tangents**2).sum(1), (bends**2).sum(1)
    va = (tangents * bends).sum(1)
    # Of vectors that are parallel the difference is 0, but for rounding.
    area = np.sqrt(np.maximum(vv * aa - va**2, 0))
    with np.errstate(divide="ignore", invalid="ignore"):
        return Curve(np.sqrt(vv), area / vv**1.5, area / vv, np.sqrt(aa))


def integrate(values: np.ndarray, convention: str) -> float:
    """The integral over the circle of values at angles from 0 to 2 pi, both included.

    Args:
        values: `[angles]`.
        convention: "paper", by the trapezoid rule; "code", their plain sum.

    Example:
        >>> integrate(np.ones(10), "code"), round(integrate(np.ones(10), "paper"), 4)
        (10.0, 6.2832)
    """
    if convention == "code":
        return float(values.sum())
    return float(np.trapezoid(values, dx=2 * np.pi / (len(values) - 1)))


def gauss_length_as_coded(curve: Curve, batch_size: int = 6) -> float:
    """What the published code calls the length of the Gauss map.

    It divides the accelerations by the speeds of all angles of a mini-batch, and leaves out that
    the speed changes; the value depends on the mini-batch. For comparison with it alone.

    Args:
        curve: of order 2.
        batch_size: angles of a mini-batch.
    """
    total = 0.0
    for start in range(0, len(curve.speed), batch_size):
        some = slice(start, start + batch_size)
        total += curve.acceleration[some].sum() * (1 / curve.speed[some]).sum()
    return float(total)


def ntk_condition_number(images: np.ndarray, genotype: Genotype | str, weights: Weights) -> float:
    """The condition number of the neural tangent kernel of some images.

    Args:
        images: `[b, height, width, 3]`, 16 of them in the paper, normalised as for training.
        genotype: the network, measured with its LayerNorms.
        weights: as `draw_weights` gives them.

    Returns:
        The largest eigenvalue over the smallest; NaN where the kernel is singular or not finite.

    Raises:
        ValueError: fewer than two images, images that are not finite or whose size or type the
            network does not take, or weights of another network.

    Example:
        >>> from keras_vmoe.autoscale.weights import draw_weights
        >>> genotype = Genotype.parse("4,2,2|2,1,2|2,1,2|2,1,2|16,8")
        >>> rng = np.random.default_rng(0)
        >>> weights = draw_weights(genotype, rng)
        >>> images = rng.standard_normal((2, 32, 32, 3), "float32")
        >>> ntk_condition_number(images, genotype, weights) > 1
        True

    Reference: Chen et al. 2022, arXiv 2202.11921 (As-ViT), section 3.2.
    """
    genotype = Genotype.parse(genotype)
    require_tensorflow()
    require(
        images.ndim == 4 and len(images) >= 2,
        "images must be at least two, [images, height, width, 3]. Received: images of shape "
        f"{images.shape}",
    )
    network.check_images("images", images, genotype, weights)
    require(bool(np.isfinite(images).all()), "images must be finite. Received: some that are not")
    return condition_number(ntk_gram(images, genotype, weights))


def condition_number(gram: np.ndarray) -> float:
    """The largest eigenvalue over the smallest.

    Args:
        gram: `[b, b]`, symmetric.

    Returns:
        NaN where the matrix is not finite, or where the smallest eigenvalue is not above the
        rounding errors of the largest.

    Example:
        >>> condition_number(np.diag([4.0, 1.0])), condition_number(np.ones((2, 2)))
        (4.0, nan)
    """
    if not np.isfinite(gram).all():
        return float("nan")
    eigenvalues = np.linalg.eigvalsh(gram.astype("float64"))
    smallest, largest = eigenvalues[0], eigenvalues[-1]
    # Gradients are float32, whatever the sum is taken in.
    if smallest <= largest * len(gram) * np.finfo("float32").eps * 1e-3:
        return float("nan")
    return float(largest / smallest)


def require_tensorflow() -> None:
    """Refuses other backends, whose tensors the measures do not know.

    Raises:
        ValueError: if Keras runs on another backend.
    """
    backend = keras.backend.backend()
    require(
        backend == "tensorflow",
        "keras_vmoe.autoscale measures with TensorFlow. Received: "
        f"KERAS_BACKEND={backend!r}; run it with KERAS_BACKEND=tensorflow",
    )
