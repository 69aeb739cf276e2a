"""The yardstick of the model table: a ViT as one would write it with Keras' own layers."""

from __future__ import annotations

import keras
from keras import layers


def plain_vit(
    image_size: int = 224,
    batch_size: int = 16,
    patch_size: int = 32,
    num_layers: int = 8,
    width: int = 512,
    mlp_dim: int = 2048,
    num_heads: int = 8,
    num_classes: int = 1000,
    representation_size: int | None = 512,
) -> keras.Model:
    """Builds a ViT for timing from Keras' own layers alone.

    It does the work of `models.ViT` but for the addition of position embeddings, and its class
    token is a copy of the first patch: neither takes time that can be measured, and Keras has no
    layer for either.

    Args:
        image_size: side of the images, pixels.
        batch_size: images; fixed, so that all shapes are static.
        patch_size: side of a patch, pixels.
        num_layers: encoder blocks.
        width: model width (d).
        mlp_dim: hidden width of the MLPs.
        num_heads: attention heads.
        num_classes: size of the head.
        representation_size: width of the tanh layer before the head, or `None`.

    Returns:
        A functional model from `[b, image_size, image_size, 3]` to `[b, num_classes]`.

    Example:
        >>> plain_vit(image_size=32, batch_size=2, num_layers=1, width=16).output_shape
        (2, 1000)
    """
    images = keras.Input((image_size, image_size, 3), batch_size=batch_size)
    x = layers.Conv2D(width, patch_size, patch_size)(images)
    x = layers.Reshape((-1, width))(x)
    x = keras.ops.concatenate([x[:, :1], x], axis=1)
    for _ in range(num_layers):
        y = layers.LayerNormalization(epsilon=1e-6)(x)
        x = x + layers.MultiHeadAttention(num_heads, width // num_heads)(y, y)
        y = layers.LayerNormalization(epsilon=1e-6)(x)
        y = layers.Dense(mlp_dim, activation=_gelu_tanh)(y)
        x = x + layers.Dense(width)(y)
    x = layers.LayerNormalization(epsilon=1e-6)(x)[:, 0]
    if representation_size is not None:
        x = layers.Dense(representation_size, activation="tanh")(x)
    return keras.Model(images, layers.Dense(num_classes)(x), name="plain_vit")


def _gelu_tanh(x: keras.KerasTensor) -> keras.KerasTensor:
    return keras.activations.gelu(x, approximate=True)
