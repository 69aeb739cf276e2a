"""The end of a contrastive model: embeddings of length 1, and the temperature."""

from __future__ import annotations

import math
from typing import Any

import keras
from keras import ops as kops

from keras_vmoe.layers.router import float32_policy
from keras_vmoe.ops.validation import require


@keras.saving.register_keras_serializable(package="keras_vmoe")
class L2Normalization(keras.layers.Layer):
    """Vectors of length 1: `z / (|z| + epsilon)`, in float32.

    Args:
        epsilon: keeps a zero vector finite.

    Call arguments:
        inputs: `[b, d]`.

    Returns:
        `[b, d]`, float32.

    Example:

    >>> import numpy as np
    >>> from keras_vmoe import layers
    >>> unit = layers.L2Normalization()(np.array([[3.0, 4.0]]))
    >>> [round(float(x), 4) for x in unit[0]]
    [0.6, 0.8]
    """

    def __init__(self, epsilon: float = 1e-8, **kwargs: Any) -> None:
        super().__init__(**{**kwargs, "dtype": float32_policy(kwargs.get("dtype"))})
        require(epsilon > 0, f"epsilon must be above 0. Received: epsilon={epsilon}")
        self.epsilon = epsilon

    def call(self, inputs: Any) -> Any:
        # The root of 0 has no gradient.
        square = kops.maximum(kops.sum(kops.square(inputs), axis=-1, keepdims=True), 1e-24)
        return inputs / (kops.sqrt(square) + self.epsilon)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "epsilon": self.epsilon}


@keras.saving.register_keras_serializable(package="keras_vmoe")
class LogitScale(keras.layers.Layer):
    """The learned scale (inverse temperature) and bias of contrastive logits.

    Each pair of a batch is given the same numbers, so that a model can return them.

    Args:
        scale_init: the scale that training starts from; its logarithm is learned.
        bias_init: the bias that training starts from; `None`: there is none.
        maximum: the scale is held at or below this, and so is what an optimizer makes of it.

    Call arguments:
        inputs: `[b, ...]`, for its number of rows.

    Returns:
        `[b]` scales, or `([b] scales, [b] biases)`; float32.

    Raises:
        ValueError: a scale that is not between 0 and `maximum`.

    Example:

    >>> import numpy as np
    >>> from keras_vmoe import layers
    >>> np.asarray(layers.LogitScale(10.0)(np.zeros((2, 8)))).round(3).tolist()
    [10.0, 10.0]

    Reference: Radford et al. 2021, arXiv 2103.00020, section 2.5; Zhai et al. 2023,
    arXiv 2303.15343, section 3.2 (the bias).
    """

    def __init__(
        self,
        scale_init: float = 10.0,
        bias_init: float | None = None,
        maximum: float = 100.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**{**kwargs, "dtype": float32_policy(kwargs.get("dtype"))})
        require(
            0 < scale_init <= maximum,
            f"scale_init must be above 0 and at most maximum={maximum}. "
            f"Received: scale_init={scale_init}",
        )
        self.scale_init = scale_init
        self.bias_init = bias_init
        self.maximum = maximum

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        self.log_scale = self.add_weight(
            name="log_scale",
            shape=(),
            initializer=keras.initializers.Constant(math.log(self.scale_init)),
            # Far above the limit it would take as many steps to come back.
            constraint=self._held,
        )
        if self.bias_init is not None:
            self.bias = self.add_weight(
                name="bias", shape=(), initializer=keras.initializers.Constant(self.bias_init)
            )

    def _held(self, log_scale: Any) -> Any:
        """What an optimizer leaves of a new value."""
        return kops.minimum(log_scale, math.log(self.maximum))

    def call(self, inputs: Any) -> Any:
        rows = (kops.shape(inputs)[0],)
        log_scale = kops.convert_to_tensor(self.log_scale)
        # Without the gradient of a minimum: from the limit the scale can come back.
        above = kops.stop_gradient(kops.maximum(log_scale - math.log(self.maximum), 0.0))
        scale = kops.broadcast_to(kops.exp(log_scale - above), rows)
        if self.bias_init is None:
            return scale
        return scale, kops.broadcast_to(self.bias, rows)

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> Any:
        rows = (input_shape[0],)
        return rows if self.bias_init is None else (rows, rows)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "scale_init": self.scale_init,
            "bias_init": self.bias_init,
            "maximum": self.maximum,
        }
