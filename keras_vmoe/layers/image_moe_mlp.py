"""The sparse MLP whose experts take whole images."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
from keras import ops as kops

from keras_vmoe import ops
from keras_vmoe.layers.experts import ExpertMLP
from keras_vmoe.layers.moe_mlp import has_accelerator, token_mask
from keras_vmoe.ops.validation import require, require_choice, require_rank

DISPATCHES = ("auto", "grouped", "kernels", "branches", "einsum")


@keras.saving.register_keras_serializable(package="keras_vmoe")
class ImageMoEMLP(keras.layers.Layer):
    """A sparse mixture of MLPs: all tokens of an image go through the same k experts.

    An `ImageRouter` chooses them, for several such layers at once. Nothing is dropped, and a small
    device reads the weights of k experts for an image, not of all e.

    Args:
        num_experts: experts (e).
        hidden_dim: hidden width of an expert (h).
        activation: of the experts; a name that `keras.activations` knows, or `"gelu_tanh"`.
        dropout_rate: dropout inside the experts.
        shared_init: all experts start from the same weights.
        dispatch: how images come to their experts; all give the same numbers.
            `"grouped"`: images sorted by expert, one matmul an expert: the cost of k experts, and
            shapes that depend on the data, which XLA does not compile on CPU and TPU.
            `"kernels"`: the kernels of its experts gathered for each image: the cost of k experts
            and a copy of their weights, `2 d h` numbers for each image and choice.
            `"branches"`: a single image goes down a tree of conditions to its expert, whose weights
            are neither copied nor gathered; for files that small devices run. Other batches, and
            all of training, go as with `"kernels"`.
            `"einsum"`: every image through every expert, e times the cost.
            `"auto"`: `"kernels"` for a single image, else `"grouped"`; but on JAX without an
            accelerator `"kernels"`, under TensorFlow on one `"kernels"` for no more images than
            experts and else `"einsum"`, and on a mesh `"einsum"`.
        kernel_initializer: of each expert's kernels.
        bias_initializer: of each expert's biases.

    Call arguments:
        inputs: `[b, t, d]`.
        plan: the `ops.ImagePlan` of an `ImageRouter` with as many experts.
        training: switches dropout on.

    Returns:
        As inputs.

    Raises:
        ValueError: unknown names, inputs that are not `[b, t, d]`, a plan of other experts.

    Example:

    >>> import numpy as np
    >>> from keras_vmoe import layers
    >>> tokens = np.ones((2, 5, 8), "float32")
    >>> plan = layers.ImageRouter(num_experts=4)(tokens[:, 0])
    >>> moe = layers.ImageMoEMLP(num_experts=4, hidden_dim=16)
    >>> tuple(moe(tokens, plan=plan).shape)
    (2, 5, 8)

    Reference: Daxberger et al. 2023, arXiv 2309.04354, section 2.
    """

    def __init__(
        self,
        num_experts: int = 10,
        hidden_dim: int = 2048,
        activation: Any = "gelu_tanh",
        dropout_rate: float = 0.0,
        shared_init: bool = True,
        dispatch: str = "auto",
        kernel_initializer: Any = "glorot_uniform",
        bias_initializer: Any = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        require_choice("dispatch", dispatch, DISPATCHES)
        self.experts = ExpertMLP(
            num_experts,
            hidden_dim,
            activation,
            dropout_rate,
            shared_init,
            kernel_initializer,
            bias_initializer,
            dtype=self.dtype_policy,
            name="experts",
        )
        self.dispatch = dispatch
        self.supports_masking = True
        self.supports_jit = dispatch != "grouped"

    @property
    def num_experts(self) -> int:
        """Experts (e)."""
        return self.experts.num_experts

    @property
    def hidden_dim(self) -> int:
        """Hidden width of an expert."""
        return self.experts.hidden_dim

    def build(self, input_shape: tuple[int | None, ...], *_: Any, **__: Any) -> None:
        require(
            len(input_shape) == 3 and input_shape[-1] is not None,
            "inputs must have shape [images, tokens, width] with a known width. "
            f"Received: {tuple(input_shape)}",
        )
        self.experts.build((self.num_experts, None, input_shape[-1]))

    def call(
        self, inputs: Any, plan: ops.ImagePlan, mask: Any = None, training: bool = False
    ) -> Any:
        plan = self._checked(inputs, plan)
        mix = {
            "grouped": self._grouped,
            "kernels": self._kernels,
            "branches": self._branches,
            "einsum": self._einsum,
        }
        outputs = mix[self._method(inputs, training)](inputs, plan, training)
        return kops.cast(outputs, self.compute_dtype)

    def compute_output_spec(self, inputs: Any, plan: ops.ImagePlan, **_: Any) -> keras.KerasTensor:
        self._checked(inputs, plan)
        return keras.KerasTensor(inputs.shape, self.compute_dtype)

    def _checked(self, inputs: Any, plan: ops.ImagePlan) -> ops.ImagePlan:
        require_rank("inputs", inputs, 3, "[images, tokens, width]")
        plan = ops.ImagePlan(*plan)  # a graph that is read from a file hands in a plain tuple
        require(
            plan.gates.shape[-1] == self.num_experts,
            f"plan must be of {self.num_experts} experts, as {self.name!r} has. "
            f"Received: one of {plan.gates.shape[-1]}",
        )
        return plan

    def _method(self, inputs: Any, training: bool = False) -> str:
        if self.dispatch == "branches" and (training or inputs.shape[0] != 1):
            return "kernels"
        if self.dispatch != "auto":
            return self.dispatch
        if ops.on_mesh():
            return "einsum"
        if inputs.shape[0] == 1:
            return "kernels"
        # Where ragged matmuls run, and cost no more than the rows that they have.
        on_jax = keras.backend.backend() == "jax"
        if on_jax == has_accelerator():
            return "grouped"
        # A copy of the kernels for each image of a large batch would not fit into an accelerator.
        few = inputs.shape[0] is not None and inputs.shape[0] <= self.num_experts
        return "kernels" if on_jax or few else "einsum"

    def _grouped(self, inputs: Any, plan: ops.ImagePlan, training: bool) -> Any:
        images, length, width = kops.shape(inputs)
        choice = ops.as_token_choice(plan)
        where = ops.row_map(choice, self.num_experts, images, "grouped")
        # An image is a row until it is with its expert; there its tokens are rows.
        rows = ops.rows_from_tokens(kops.reshape(inputs, [images, length * width]), where)
        rows = kops.reshape(rows, [-1, width])
        outputs = self.experts(rows, group_sizes=where.group_sizes * length, training=training)
        outputs = kops.reshape(outputs, [-1, length * width])
        outputs = ops.weighted_tokens(outputs, choice, where, images)
        return kops.reshape(outputs, [images, length, width])

    def _kernels(self, inputs: Any, plan: ops.ImagePlan, training: bool) -> Any:
        return _weighted_sum(
            plan, lambda expert: self.experts(inputs, expert=expert, training=training)
        )

    def _branches(self, inputs: Any, plan: ops.ImagePlan, training: bool) -> Any:
        def choose(expert: Any, first: int, end: int) -> Any:
            if end - first == 1:
                return self.experts(inputs, expert=first)
            middle = (first + end) // 2
            return kops.cond(
                expert < middle,
                lambda: choose(expert, first, middle),
                lambda: choose(expert, middle, end),
            )

        return _weighted_sum(
            plan, lambda expert: choose(kops.reshape(expert, []), 0, self.num_experts)
        )

    def _einsum(self, inputs: Any, plan: ops.ImagePlan, training: bool) -> Any:
        images, length, width = kops.shape(inputs)
        every = kops.broadcast_to(
            kops.reshape(inputs, [1, images * length, width]),
            [self.num_experts, images * length, width],
        )
        outputs = self.experts(every, training=training)
        outputs = kops.reshape(outputs, [self.num_experts, images, length, width])
        hot = kops.one_hot(plan.expert, self.num_experts, dtype=plan.weight.dtype)
        weight = kops.sum(hot * kops.expand_dims(plan.weight, -1), axis=1)
        return kops.einsum("be,ebtd->btd", weight, kops.cast(outputs, weight.dtype))

    def compute_mask(self, inputs: Any, previous_mask: Any = None) -> Any:
        return token_mask(previous_mask)

    def compute_output_shape(
        self, input_shape: tuple[int | None, ...], *args: Any, **kwargs: Any
    ) -> tuple[int | None, ...]:
        return tuple(input_shape)

    def get_config(self) -> dict[str, Any]:
        experts = self.experts.get_config()
        shared = ("num_experts", "hidden_dim", "activation", "dropout_rate", "shared_init")
        initializers = ("kernel_initializer", "bias_initializer")
        return {
            **super().get_config(),
            "dispatch": self.dispatch,
            **{name: experts[name] for name in shared + initializers},
        }


def _weighted_sum(plan: ops.ImagePlan, run: Callable[[Any], Any]) -> Any:
    """The outputs `[b, t, d]` of `run(expert)` for each choice `[b]`, weighted and added up."""
    total = None
    for i in range(plan.expert.shape[1]):
        outputs = run(plan.expert[:, i]) * kops.reshape(plan.weight[:, i], [-1, 1, 1])
        total = outputs if total is None else total + outputs
    return total
