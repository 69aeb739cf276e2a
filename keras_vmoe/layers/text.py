"""Texts as tokens of a transformer."""

from __future__ import annotations

import math
from typing import Any

import keras
from keras import ops as kops

from keras_vmoe.ops.validation import concrete, require, require_positive_int


def text_mask(tokens: Any, eos_id: int = 1) -> Any:
    """`[b, t]` bool: the tokens of a text up to its first end-of-sentence, which is one of them.

    A text that was cut has no end, and all its tokens count.

    Args:
        tokens: `[b, t]` ints; behind the end a text is filled up, with the end or anything else.
        eos_id: the token that ends a text.

    Example:

    >>> import numpy as np
    >>> from keras_vmoe import layers
    >>> np.asarray(layers.text_mask(np.array([[5, 1, 1], [5, 6, 7]]))).tolist()
    [[True, True, False], [True, True, True]]
    """
    tokens = kops.convert_to_tensor(tokens)
    ends = kops.cast(kops.equal(tokens, eos_id), "int32")
    return kops.equal(kops.cumsum(ends, axis=1) - ends, 0)


@keras.saving.register_keras_serializable(package="keras_vmoe")
class TextEmbedding(keras.layers.Layer):
    """A learned vector for each token of a vocabulary.

    Args:
        vocabulary_size: tokens of the vocabulary.
        width: model width (d).

    Call arguments:
        inputs: `[b, t]` ints from 0 to `vocabulary_size - 1`.

    Returns:
        `[b, t, d]`.

    Raises:
        ValueError: a token that the vocabulary does not have, where the inputs are known (in a
            graph TensorFlow raises its own error on a CPU).

    Example:

    >>> import numpy as np
    >>> from keras_vmoe import layers
    >>> tuple(layers.TextEmbedding(100, width=8)(np.array([[3, 99, 1]])).shape)
    (1, 3, 8)
    """

    def __init__(self, vocabulary_size: int, width: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        require_positive_int("vocabulary_size", vocabulary_size)
        require_positive_int("width", width)
        self.vocabulary_size = vocabulary_size
        self.width = width

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        self.embedding = self.add_weight(
            name="embedding",
            shape=(self.vocabulary_size, self.width),
            initializer=keras.initializers.RandomNormal(stddev=1 / math.sqrt(self.width)),
        )

    def call(self, inputs: Any) -> Any:
        require(
            "int" in keras.backend.standardize_dtype(inputs.dtype),
            f"tokens must be integers. Received: {keras.backend.standardize_dtype(inputs.dtype)}",
        )
        known = concrete(inputs)
        if known is not None and known.size:
            require(
                known.min() >= 0 and known.max() < self.vocabulary_size,
                f"tokens must be between 0 and {self.vocabulary_size - 1}, the vocabulary of layer "
                f"{self.name!r}. Received: tokens between {known.min()} and {known.max()}; take "
                "the tokenizer that the model was trained with",
            )
        return kops.cast(kops.take(self.embedding, inputs, axis=0), self.compute_dtype)

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        return (*input_shape, self.width)

    def compute_output_spec(self, inputs: Any) -> keras.KerasTensor:
        return keras.KerasTensor((*inputs.shape, self.width), dtype=self.compute_dtype)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "vocabulary_size": self.vocabulary_size,
            "width": self.width,
        }
