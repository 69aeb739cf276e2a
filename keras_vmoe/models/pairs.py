"""What models of image-text pairs share: their outputs, their loss, their two encoders."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import keras
from keras import ops as kops

from keras_vmoe import layers, ops
from keras_vmoe.layers import effects
from keras_vmoe.models.base import FunctionalModel, VisionModel
from keras_vmoe.ops.contrastive import KINDS
from keras_vmoe.ops.losses import safe_divide
from keras_vmoe.ops.validation import require, require_choice

Graph = Callable[[], tuple[Any, Any]]


class Projection:
    """A linear map to the embedding space, and to length 1.

    Args:
        dim: width of the embeddings.
        policy: dtype policy of the map; the embeddings are float32.
        name: of the modality.
    """

    def __init__(self, dim: int, policy: Any, name: str) -> None:
        self.dense = keras.layers.Dense(dim, dtype=policy, name=f"{name}_projection")
        self.unit = layers.L2Normalization(dtype=policy, name=f"{name}_unit_length")

    def __call__(self, x: Any) -> Any:
        return self.unit(self.dense(x))


def logit_scale(config: dict[str, Any]) -> layers.LogitScale:
    """The scale of the logits, and their bias where the loss is the sigmoid one."""
    require_choice("loss", config["loss"], KINDS)
    bias = config["bias_init"] if config["loss"] == "sigmoid" else None
    return layers.LogitScale(config["scale_init"], bias, name="logit_scale")


def pair_outputs(image: Any, text: Any, scale: Any) -> dict[str, Any]:
    """The outputs of a model of pairs, from its embeddings and what `LogitScale` gives."""
    outputs = {"image_embedding": image, "text_embedding": text}
    if isinstance(scale, (tuple, list)):
        return {**outputs, "logit_scale": scale[0], "logit_bias": scale[1]}
    return {**outputs, "logit_scale": scale}


def _require_both(inputs: Any) -> None:
    known = isinstance(inputs, Mapping)
    require(
        known and set(inputs) == {"images", "tokens"},
        "inputs must be a dict of images and tokens, whose rows are pairs. Received: "
        f"{sorted(inputs) if known else type(inputs).__name__}. One modality alone is for "
        "encode_image (or image_encoder) and encode_text (or text_encoder)",
    )


def _require_pairs(images: Any, tokens: Any) -> None:
    _require_int_tokens(tokens)
    rows, others = images.shape[0], tokens.shape[0]
    require(
        None in (rows, others) or rows == others,
        "images and tokens must have the same number of rows, one for each pair. "
        f"Received: images of shape {tuple(images.shape)}, tokens of shape {tuple(tokens.shape)}",
    )


def _require_int_tokens(tokens: Any) -> None:
    """Keras would round floats to integers, and say nothing."""
    dtype = keras.backend.standardize_dtype(tokens.dtype)
    require("int" in dtype, f"tokens must be integers. Received: tokens of dtype {dtype}")


class Encoder(FunctionalModel):
    """One modality alone; the routing metrics of the pairs are left alone."""

    def call(self, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
        if self.inputs[0].name == "tokens":
            _require_int_tokens(inputs)
        with layers.routing_metrics(False):
            return super().call(inputs, training=training, mask=mask)


class _Untracked:
    """Holds what Keras must not take for a sublayer: models of layers that it knows already."""

    def __init__(self, image: Graph, text: Graph) -> None:
        self.graphs = {"image": image, "text": text}
        self.models: dict[str, Encoder] = {}


class PairModel(VisionModel):
    """Base class of the models of image-text pairs.

    `fit` trains on batches of `{"images", "tokens"}` without labels, with the loss that the model
    was made for: `model.compile(optimizer)`. Under tf.distribute the pairs of all replicas are
    told apart.
    """

    def __init__(self, config: dict[str, Any], graph: tuple[Any, Any], **kwargs: Any) -> None:
        super().__init__(config, graph, **kwargs)
        self._accuracy = keras.metrics.Mean(name="accuracy")

    @property
    def metrics(self) -> list[keras.metrics.Metric]:
        """Those of the layers, and of a compiled model its accuracy among the pairs of a batch."""
        found = super().metrics
        return found if self.compiled else [m for m in found if m is not self._accuracy]

    def __call__(self, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        _require_both(inputs)
        return super().__call__(inputs, *args, **kwargs)

    def call(self, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
        _require_both(inputs)  # the JAX trainer comes here at once
        _require_pairs(**inputs)
        return super().call(inputs, training=training, mask=mask)

    def fit(self, x: Any = None, *args: Any, **kwargs: Any) -> Any:
        """`keras.Model.fit`, that refuses arrays which are no pairs."""
        if isinstance(x, Mapping):
            _require_both(x)
            _require_pairs(**x)
        return super().fit(x, *args, **kwargs)

    def _keep_encoders(self, image: Graph, text: Graph) -> None:
        self._encoders = _Untracked(image, text)

    @property
    def image_encoder(self) -> FunctionalModel:
        """A model of images alone, `[b, height, width, channels]` to `[b, d]`; shares its layers
        with this one."""
        return self._encoder("image")

    @property
    def text_encoder(self) -> FunctionalModel:
        """A model of texts alone, `[b, text_length]` tokens to `[b, d]`; shares its layers with
        this one."""
        return self._encoder("text")

    def _encoder(self, name: str) -> Encoder:
        kept = self._encoders
        if name not in kept.models:
            inputs, outputs = kept.graphs[name]()
            encoder = Encoder(inputs, outputs, name=f"{self.name}_{name}_encoder")
            encoder.input_range = self.input_range if name == "image" else None
            kept.models[name] = encoder
        return kept.models[name]

    def encode_image(self, images: Any) -> Any:
        """Embeddings of images.

        Args:
            images: `[b, height, width, channels]`, in [-1, 1].

        Returns:
            `[b, d]`, of length 1.
        """
        return self.image_encoder(images, training=False)

    def encode_text(self, tokens: Any) -> Any:
        """Embeddings of texts.

        Args:
            tokens: `[b, text_length]` ints.

        Returns:
            `[b, d]`, of length 1.
        """
        return self.text_encoder(tokens, training=False)

    def compute_loss(
        self,
        x: Any = None,
        y: Any = None,
        y_pred: Any = None,
        sample_weight: Any = None,
        training: bool = True,
    ) -> Any:
        """Called by `fit` and `evaluate`: the contrastive loss and the auxiliary ones.

        Raises:
            ValueError: labels or weights of samples, which pairs do not have.
        """
        require(
            y is None and sample_weight is None,
            "pairs have no labels and no weights: fit takes {'images', 'tokens'} alone. Received: "
            f"{'labels' if y is not None else 'sample_weight'}",
        )
        # Before the exchange between replicas: their forward passes share the layers.
        auxiliary = list(self.losses)
        logits, kind = ops.contrastive_outputs(y_pred)
        hits, losses = ops.contrastive_hits(logits), ops.contrastive_loss(logits, kind)
        # The last batch may leave a replica without pairs, of which there is no mean.
        count = kops.cast(kops.shape(losses)[0], losses.dtype)
        accuracy, total = (safe_divide(kops.sum(each), count) for each in (hits, losses))
        effects.emit_metric(self._accuracy, accuracy, count)
        for loss in auxiliary:
            total += kops.cast(loss, total.dtype)
        # The gradients of replicas are summed.
        return total / ops.num_replicas()
