"""Stacked expert MLPs."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops as kops

from keras_vmoe import ops
from keras_vmoe.ops.validation import require, require_fraction, require_positive_int


def fresh_initializer(initializer: Any) -> Any:
    """An initializer as it is given, a name or a config, or a clone of one.

    An initializer without a seed has drawn one when it was made, so it gives the same numbers at
    every call; its clone draws others.
    """
    if isinstance(initializer, keras.initializers.Initializer):
        return initializer.clone()
    return initializer


def serialized_initializer(initializer: Any) -> Any:
    """An initializer for a config: a name or a config as it is, another one as its config."""
    if initializer is None or isinstance(initializer, str | dict):
        return initializer
    return keras.initializers.serialize(initializer)


class _Stacked:
    """An initializer of `[e, ...]` weights from one of `[...]`: e draws, or one draw repeated.

    `place` counts the weights that the same initializer draws: each gets numbers of its own.
    """

    def __init__(self, initializer: Any, count: int, shared: bool, place: int) -> None:
        self.shared = shared
        count = 1 if shared else count
        self._draws = [initializer] * count
        # An initializer gives the same numbers at every call: each draw has a copy of its own, with
        # another seed. What draws from a generator of seeds, and a function, are left as they are.
        if isinstance(getattr(initializer, "seed", None), int):
            self._draws = [initializer.clone() for _ in range(count)]
            for i, draw in enumerate(self._draws):
                draw.seed = draw.seed + place * count + i

    def __call__(self, shape: tuple[int, ...], dtype: Any = None) -> Any:
        return self.part(shape, 0, shape[0], dtype)

    def part(self, shape: tuple[int, ...], first: int, end: int, dtype: Any = None) -> Any:
        """The weights of the experts from `first` to before `end`, of `shape[0]`.

        A mesh of devices draws each device's experts alone.
        """
        if self.shared:
            one = self._draws[0](shape[1:], dtype=dtype)
            return kops.broadcast_to(kops.expand_dims(one, 0), (end - first, *shape[1:]))
        return kops.stack([draw(shape[1:], dtype=dtype) for draw in self._draws[first:end]])


@keras.saving.register_keras_serializable(package="keras_vmoe")
class ExpertMLP(keras.layers.Layer):
    """E two-layer MLPs, `gelu(x W1 + b1) W2 + b2`, each on its own rows.

    Args:
        num_experts: experts (e).
        hidden_dim: hidden width (h).
        activation: a name that `keras.activations` knows, or `"gelu_tanh"`.
        dropout_rate: dropout after the activation.
        shared_init: all experts start from the same weights, as in the reference.
        kernel_initializer: of each expert's kernels; the expert axis does not enter the fan.
        bias_initializer: of each expert's biases.

    Call arguments:
        inputs: `[e, n, d]`; or `[m, d]` rows sorted by expert together with `group_sizes`; or
            `[b, t, d]` together with `expert`.
        group_sizes: optional `[e]` ints, how many consecutive rows each expert has.
        expert: optional `[b]` ints, the expert that each `[t, d]` goes through. The kernels of that
            expert are gathered for it, so few of them are cheaper than `group_sizes`. Or one int of
            Python: the expert that all rows go through, whose kernels are not copied.
        training: switches dropout on.
        few_rows: whether `group_sizes` are small, as in `ops.grouped_mlp`; only in training.

    Returns:
        As `inputs`.

    Raises:
        ValueError: inputs whose first axis is not the number of experts, `group_sizes` and `expert`
            both, values out of range.

    Example:

    >>> import numpy as np
    >>> from keras_vmoe import layers
    >>> experts = layers.ExpertMLP(num_experts=2, hidden_dim=8)
    >>> tuple(experts(np.ones((2, 3, 4), "float32")).shape)
    (2, 3, 4)

    Reference: Riquelme et al. 2021, arXiv 2106.05974, section 2.1.
    """

    def __init__(
        self,
        num_experts: int,
        hidden_dim: int,
        activation: Any = "gelu_tanh",
        dropout_rate: float = 0.0,
        shared_init: bool = True,
        kernel_initializer: Any = "glorot_uniform",
        bias_initializer: Any = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        require_positive_int("num_experts", num_experts)
        require_positive_int("hidden_dim", hidden_dim)
        require_fraction("dropout_rate", dropout_rate)
        self.num_experts = num_experts
        self.hidden_dim = hidden_dim
        self.activation = ops.get_activation(activation)
        self.dropout_rate = dropout_rate
        self.shared_init = shared_init
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.bias_initializer = keras.initializers.get(
            bias_initializer or keras.initializers.RandomNormal(stddev=1e-6)
        )
        self.dropout = (
            keras.layers.Dropout(dropout_rate, dtype=self.dtype_policy) if dropout_rate else None
        )

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        width = input_shape[-1]
        require(
            len(input_shape) in (2, 3) and width is not None,
            "inputs must have shape [experts, rows, width] or [rows, width]. "
            f"Received: {tuple(input_shape)}",
        )
        e, h = self.num_experts, self.hidden_dim
        shapes = {"hidden": (width, h), "output": (h, width)}
        for place, (name, (inner, outer)) in enumerate(shapes.items()):
            for part, shape, initializer in (
                ("kernel", (e, inner, outer), self.kernel_initializer),
                ("bias", (e, outer), self.bias_initializer),
            ):
                stacked = _Stacked(initializer, e, self.shared_init, place)
                weight = self.add_weight(name=f"{name}_{part}", shape=shape, initializer=stacked)
                setattr(self, f"{name}_{part}", weight)

    def call(
        self,
        inputs: Any,
        group_sizes: Any = None,
        expert: Any = None,
        training: bool = False,
        few_rows: bool = False,
    ) -> Any:
        require(
            group_sizes is None or expert is None,
            "give one of group_sizes and expert. Received: both",
        )
        dropout = None
        if self.dropout is not None:
            dropout = lambda x: self.dropout(x, training=training)  # noqa: E731
        if group_sizes is not None:
            return ops.grouped_mlp(
                inputs,
                group_sizes,
                kops.convert_to_tensor(self.hidden_kernel),
                kops.convert_to_tensor(self.hidden_bias),
                kops.convert_to_tensor(self.output_kernel),
                kops.convert_to_tensor(self.output_bias),
                self.activation,
                dropout,
                training and few_rows,
            )
        require(
            len(inputs.shape) == 3 and (expert is not None or self._one_for_each(inputs)),
            f"inputs must have shape [{self.num_experts}, rows, width] where neither group_sizes "
            f"nor expert is given. Received: {tuple(inputs.shape)}",
        )

        def own(weight: Any) -> Any:
            if expert is None or isinstance(expert, int):
                return weight if expert is None else weight[expert]
            return kops.take(weight, expert, axis=0)

        # One bias for each stack of rows, or one for all rows.
        hidden_bias, output_bias = (
            bias if isinstance(expert, int) else kops.expand_dims(bias, 1)
            for bias in (own(self.hidden_bias), own(self.output_bias))
        )
        hidden = self.activation(kops.matmul(inputs, own(self.hidden_kernel)) + hidden_bias)
        hidden = dropout(hidden) if dropout else hidden
        return kops.matmul(hidden, own(self.output_kernel)) + output_bias

    def _one_for_each(self, inputs: Any) -> bool:
        return inputs.shape[0] in (None, self.num_experts)

    def compute_output_shape(
        self, input_shape: tuple[int | None, ...], *args: Any, **kwargs: Any
    ) -> tuple[int | None, ...]:
        return tuple(input_shape)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "num_experts": self.num_experts,
            "hidden_dim": self.hidden_dim,
            "activation": ops.serialize_activation(self.activation),
            "dropout_rate": self.dropout_rate,
            "shared_init": self.shared_init,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
            "bias_initializer": keras.initializers.serialize(self.bias_initializer),
        }
