"""A model of pairs together with its preprocessing and its vocabulary."""

from __future__ import annotations

import base64
import contextlib
import functools
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from keras_vmoe import text
from keras_vmoe.models.base import FunctionalModel
from keras_vmoe.models.classifier import preprocess, require_images
from keras_vmoe.models.pairs import PairModel
from keras_vmoe.ops.validation import require, require_positive_int


@keras.saving.register_keras_serializable(package="keras_vmoe")
class ImageTextModel(FunctionalModel):
    """Embeds raw images and texts as they are written: resizes, rescales, tokenizes.

    A saved one holds its vocabulary, so a file is all that is needed.

    Args:
        model: a `LIMoE` or a `TwoTower`.
        vocabulary: the content of the SentencePiece file that the model was trained with
            (`Tokenizer.model`).
        value_range: what the pixel values 0 and 255 become.

    Call arguments:
        inputs: `{"images": [b, any height, any width, channels] from 0 to 255, "tokens":
            [b, text_length] ints}`.

    Returns:
        As `model`.

    Raises:
        ValueError: another kind of model, a vocabulary that does not fit it.

    Example:

    >>> import numpy as np
    >>> from keras_vmoe import models, text
    >>> words = text.train_tokenizer(["a cat", "a dog"], vocabulary_size=40)
    >>> size = words.vocabulary_size
    >>> limoe = models.LIMoE.from_variant("limoe_ti8", vocabulary_size=size)
    >>> model = models.ImageTextModel(limoe, words.model)
    >>> model.encode_text(["a cat", "the dog"]).shape
    (2, 64)
    >>> picture = np.zeros((1, 48, 64, 3), "uint8")
    >>> model.classify(picture, ["cat", "dog"], templates=["a {}"])[0][0] in ("cat", "dog")
    True
    """

    def __init__(
        self,
        model: PairModel,
        vocabulary: bytes,
        value_range: tuple[float, float] = (-1.0, 1.0),
        **kwargs: Any,
    ) -> None:
        require(
            isinstance(model, PairModel),
            f"model must be a LIMoE or a TwoTower. Received: a {type(model).__name__}",
        )
        require(
            isinstance(vocabulary, bytes) and len(vocabulary) > 0,
            "vocabulary must be the content of a SentencePiece file, such as Tokenizer.model. "
            f"Received: {type(vocabulary).__name__}",
        )
        low, high = (float(value) for value in value_range)
        require(low < high, f"value_range must be (low, high). Received: value_range={value_range}")
        _, height, width, channels = model.input["images"].shape
        images = keras.Input((None, None, channels), name="images", dtype="float32")
        tokens = keras.Input(model.input["tokens"].shape[1:], name="tokens", dtype="int32")
        prepared = preprocess(images, (height, width), (low, high))
        outputs = model({"images": prepared, "tokens": tokens})
        super().__init__(inputs={"images": images, "tokens": tokens}, outputs=outputs, **kwargs)
        self.model = model
        self.vocabulary = vocabulary
        self.value_range = (low, high)
        self.input_range = (0.0, 255.0)
        with contextlib.suppress(ImportError):  # without the libraries it is checked when used
            self.tokenizer  # noqa: B018

    @functools.cached_property
    def tokenizer(self) -> text.Tokenizer:
        """The tokenizer of the vocabulary.

        Raises:
            ImportError: without the libraries that it needs.
            ValueError: a vocabulary that does not fit the model.
        """
        arguments = self.model.arguments
        tokenizer = text.Tokenizer(self.vocabulary, arguments["text_length"])
        require(
            tokenizer.vocabulary_size <= arguments["vocabulary_size"]
            and tokenizer.eos_id == arguments["eos_id"],
            f"vocabulary must be the one that the model was trained with, of at most "
            f"{arguments['vocabulary_size']} tokens and with token {arguments['eos_id']} as the "
            f"end. Received: {tokenizer.vocabulary_size} tokens, end {tokenizer.eos_id}",
        )
        return tokenizer

    def encode_image(self, images: Any, batch_size: int = 32) -> np.ndarray:
        """Embeddings of raw images.

        Args:
            images: `[n, height, width, channels]`, 0 to 255.
            batch_size: images that go through the model at a time.

        Returns:
            `[n, d]`, of length 1.

        Raises:
            ValueError: another rank or other channels, no image, a batch of none.
        """
        images = np.asarray(images)
        _, height, width, channels = self.model.input["images"].shape
        require_images(images, channels)
        require(
            len(images) > 0,
            f"images must hold at least one image. Received: images of shape {images.shape}",
        )
        require_positive_int("batch_size", batch_size)
        embeddings = []
        for start in range(0, len(images), batch_size):
            prepared = preprocess(
                images[start : start + batch_size], (height, width), self.value_range
            )
            embeddings.append(self.model.image_encoder.predict_on_batch(prepared))
        return np.concatenate([keras.ops.convert_to_numpy(part) for part in embeddings])

    def encode_text(self, texts: Sequence[str], batch_size: int = 256) -> np.ndarray:
        """Embeddings of texts.

        Args:
            texts: strings; longer ones than the model takes are cut.
            batch_size: texts that go through the model at a time.

        Returns:
            `[n, d]`, of length 1.

        Raises:
            ValueError: something that is no list of strings, no or an empty text, a batch of none.
        """
        require_positive_int("batch_size", batch_size)
        require(len(texts) > 0, f"texts must hold at least one text. Received: texts={texts!r}")
        tokens = np.asarray(self.tokenizer(texts))
        empty = np.flatnonzero(tokens[:, 0] == self.tokenizer.eos_id)
        require(
            len(empty) == 0,
            f"texts must not be empty. Received: texts[{empty[0] if len(empty) else 0}] without a "
            "word",
        )
        return self.model.text_encoder.predict(tokens, batch_size=batch_size, verbose=0)

    def classify(
        self,
        images: Any,
        class_names: Sequence[str],
        templates: str | Sequence[str] = "clip_best",
    ) -> list[tuple[str, float]]:
        """The most likely class of each image, zero-shot: by the texts of the classes.

        Args:
            images: `[n, height, width, channels]`, 0 to 255.
            class_names: the classes to tell apart.
            templates: see `text.templates`.

        Returns:
            A name and its probability among the classes for each image.
        """
        prompts = text.prompts(class_names, text.templates(templates))
        embeddings = self.encode_text([prompt for several in prompts for prompt in several])
        classes = embeddings.reshape(len(prompts), -1, embeddings.shape[-1]).mean(axis=1)
        classes /= np.linalg.norm(classes, axis=-1, keepdims=True)
        logits = self.logit_scale * self.encode_image(images) @ classes.T
        odds = np.exp(logits - logits.max(axis=-1, keepdims=True))
        probabilities = odds / odds.sum(axis=-1, keepdims=True)
        best = probabilities.argmax(axis=-1)
        return [(class_names[i], float(p[i])) for i, p in zip(best, probabilities, strict=True)]

    @property
    def logit_scale(self) -> float:
        """The learned scale of the logits (inverse temperature)."""
        scale = self.model.get_layer("logit_scale")(np.zeros((1, 1), "float32"))
        return float(keras.ops.convert_to_numpy(keras.tree.flatten(scale)[0])[0])

    def get_config(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "model": keras.saving.serialize_keras_object(self.model),
            "vocabulary": base64.b64encode(self.vocabulary).decode("ascii"),
            "value_range": self.value_range,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> ImageTextModel:
        model = keras.saving.deserialize_keras_object(config["model"], custom_objects)
        vocabulary = base64.b64decode(config["vocabulary"])
        return cls(**{**config, "model": model, "vocabulary": vocabulary})
