"""The members of an ensemble in one model: images repeated, told apart, averaged.

Axis letters: b images, m members.
"""

from __future__ import annotations

from typing import Any

import keras
from keras import ops as kops

from keras_vmoe import ops
from keras_vmoe.ops.classification import LOSSES
from keras_vmoe.ops.validation import require, require_choice, require_positive_int, require_rank


class _OfMembers(keras.layers.Layer):
    """A layer that knows how many members there are."""

    def __init__(self, num_members: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        require_positive_int("num_members", num_members)
        self.num_members = num_members

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "num_members": self.num_members}


@keras.saving.register_keras_serializable(package="keras_vmoe")
class RepeatMembers(_OfMembers):
    """Repeats each image once for each member of an ensemble: `[b, ...]` to `[b * m, ...]`.

    Args:
        num_members: members (m).

    Call arguments:
        inputs: `[b, ...]`.

    Returns:
        `[b * m, ...]`, the copies of an image in a row.

    Example:

    >>> import numpy as np
    >>> from keras_vmoe import layers
    >>> np.array(layers.RepeatMembers(2)(np.array([[1.0], [2.0]])))[:, 0].tolist()
    [1.0, 1.0, 2.0, 2.0]

    Reference: Allingham et al. 2021, arXiv 2110.03360, section 4.1 (tiling).
    """

    def call(self, inputs: Any) -> Any:
        rest = tuple(kops.shape(inputs))[1:]
        # A broadcast, which a mesh of devices makes in place, and no gather.
        copies = kops.repeat(kops.expand_dims(inputs, 1), self.num_members, axis=1)
        return ops.lay_out(kops.reshape(copies, [-1, *rest]), "batch")

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        images = input_shape[0]
        rows = None if images is None else images * self.num_members
        return (rows, *input_shape[1:])


@keras.saving.register_keras_serializable(package="keras_vmoe")
class SplitMembers(_OfMembers):
    """Gives the members of an ensemble an axis of their own: `[b * m, ...]` to `[b, m, ...]`.

    Args:
        num_members: members (m).

    Call arguments:
        inputs: `[b * m, ...]`, as behind `RepeatMembers`.

    Returns:
        `[b, m, ...]`.

    Raises:
        ValueError: inputs that are no multiple of m.

    Example:

    >>> import numpy as np
    >>> from keras_vmoe import layers
    >>> tuple(layers.SplitMembers(2)(np.zeros((6, 5))).shape)
    (3, 2, 5)
    """

    def call(self, inputs: Any) -> Any:
        rows = inputs.shape[0]
        require(
            rows is None or rows % self.num_members == 0,
            f"inputs must hold each image {self.num_members} times. "
            f"Received: inputs of shape {tuple(inputs.shape)}",
        )
        rest = tuple(kops.shape(inputs))[1:]
        return ops.lay_out(kops.reshape(inputs, [-1, self.num_members, *rest]), "batch")

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        rows = input_shape[0]
        images = None if rows is None else rows // self.num_members
        return (images, self.num_members, *input_shape[1:])


@keras.saving.register_keras_serializable(package="keras_vmoe")
class EnsembleAverage(keras.layers.Layer):
    """The logits of what the members of an ensemble predict together: their mean probability.

    Args:
        kind: `"softmax"` or `"sigmoid"`, what the members were trained with.

    Call arguments:
        inputs: logits `[b, m, classes]`.

    Returns:
        `[b, classes]`, see `keras_vmoe.ops.ensemble_logits`.

    Raises:
        ValueError: another kind, or inputs of another rank.

    Example:

    >>> import numpy as np
    >>> from keras_vmoe import layers
    >>> members = np.log(np.array([[[0.9, 0.1], [0.5, 0.5]]], "float32"))
    >>> np.exp(np.array(layers.EnsembleAverage()(members), "float64")).round(3).tolist()
    [[0.7, 0.3]]

    Reference: Allingham et al. 2021, arXiv 2110.03360, section 2.2.
    """

    def __init__(self, kind: str = "softmax", **kwargs: Any) -> None:
        super().__init__(**{"dtype": "float32", **kwargs})
        require_choice("kind", kind, LOSSES)
        self.kind = kind

    def call(self, inputs: Any) -> Any:
        require_rank("inputs", inputs, 3, "[images, members, classes]")
        return ops.ensemble_logits(inputs, self.kind)

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        return (input_shape[0], input_shape[-1])

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "kind": self.kind}
