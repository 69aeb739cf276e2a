"""What a run can learn: classes of images, which image and text belong together, objects."""

from __future__ import annotations

from typing import Any, Protocol

import keras
import tensorflow as tf

from keras_vmoe import data, models, ops
from keras_vmoe.trainers import results
from keras_vmoe.trainers.config import TrainConfig
from keras_vmoe.trainers.detection import Detection
from keras_vmoe.trainers.fresh_model import fresh_model
from keras_vmoe.trainers.measurement import Measurement
from keras_vmoe.trainers.pairs import Pairs
from keras_vmoe.trainers.workdir import Workdir

Batch = dict[str, tf.Tensor]


class Task(Protocol):
    """Between the data, the model and the loop.

    Attributes:
        examples: what a batch holds, in words.
        facts: what the data holds beside them, in words; empty where there is nothing to say.
        scores: the numbers of an evaluation that tell how good a model is, the main one first.
        measurements: what is measured at every evaluation, beside what the config asks for.
    """

    examples: str
    facts: str
    scores: tuple[str, ...]
    measurements: tuple[Measurement, ...]

    def make_model(self) -> keras.Model:
        """Returns a fresh model for the data."""

    def training_batches(self, start_step: int, shards: int, shard: int) -> tf.data.Dataset:
        """Returns endless batches, augmented, from a step on; one host's part of them."""

    def held_out_batches(self, batch_size: int, shards: int, shard: int) -> tf.data.Dataset:
        """Returns batches with a `"mask"`, each held-out example once; one host's part of them."""

    def inputs(self, batch: Batch) -> Any:
        """Returns what the model takes of a batch."""

    def judge(self, batch: Batch, outputs: Any, training: bool) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns of each example the loss, and 1 where the model is right (0 where it is not)."""

    def save(self, model: keras.Model, workdir: Workdir) -> None:
        """Writes the finished model, with all that it needs to be used."""


class Classification:
    """Images and their classes.

    Args:
        config: the run's parameters.
        source: labelled images.
    """

    examples = "images"
    scores, measurements = ("accuracy",), ()

    def __init__(self, config: TrainConfig, source: data.ImageSource) -> None:
        self._config, self._source = config, source
        _refuse_backbone(config, source.name)
        self.facts = f"{source.num_classes} classes"

    def make_model(self) -> keras.Model:
        """Returns a fresh model for the images and classes."""
        return self._config.make_model(self._source)

    def training_batches(
        self, start_step: int = 0, shards: int = 1, shard: int = 0
    ) -> tf.data.Dataset:
        """Returns endless batches of `{"image", "label"}`."""
        config = self._config
        return data.make_dataset(
            self._source.train,
            mix=config.mix,
            repeats=config.repeats,
            num_classes=self._source.num_classes,
            **_training(config, self._source, start_step, shards, shard),
        )

    def held_out_batches(self, batch_size: int, shards: int = 1, shard: int = 0) -> tf.data.Dataset:
        """Returns batches of `{"image", "label", "mask"}`, padded at the end."""
        arguments = _held_out(self._config, self._source, batch_size, shards, shard)
        return data.make_dataset(self._source.eval, **arguments)

    def inputs(self, batch: Batch) -> tf.Tensor:
        """Returns the images."""
        return batch["image"]

    def judge(self, batch: Batch, outputs: Any, training: bool) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns the loss of each image, and whether its class is found.

        Of an ensemble, training takes the mean of its members' losses, evaluation the loss of
        their mean prediction.
        """
        labels, logits = batch["label"], self._config.class_logits(outputs)
        losses = self._config.image_losses(labels, outputs if training else logits)
        classes = labels if labels.shape.rank == 1 else tf.argmax(labels, -1)
        hits = tf.equal(tf.argmax(logits, -1, tf.int64), tf.cast(classes, tf.int64))
        return losses, tf.cast(hits, tf.float32)

    def save(self, model: keras.Model, workdir: Workdir) -> None:
        """Writes `model.keras`: raw images to classes with names."""
        model = models.averaged_prediction(model, self._config.loss)
        results.save_model(models.Classifier(model, list(self._source.class_names)), workdir)


class Contrast:
    """Images and the texts that belong to them.

    Args:
        config: the run's parameters.
        pairs: images with captions, and their tokenizer.

    Raises:
        ValueError: a parameter that is of classification.
    """

    examples = "pairs"
    scores, measurements = ("accuracy",), ()

    def __init__(self, config: TrainConfig, pairs: Pairs) -> None:
        self._config, self._pairs = config, pairs
        _refuse_backbone(config, pairs.name)
        defaults = {"mix": None, "repeats": 1, "label_smoothing": 0.0, "upcycle": False}
        defaults["retokenization"] = ()
        for name, default in (*defaults.items(), ("loss", "softmax")):
            value = getattr(config, name)
            if value != default:
                mend = "; give it to the model, such as LIMoE.loss" if name == "loss" else ""
                raise ValueError(
                    f"train.{name}={value!r} is of classification, but {pairs.name!r} holds "
                    f"image-text pairs: leave it out{mend}"
                )

    @property
    def facts(self) -> str:
        """The vocabulary, in words."""
        return f"a vocabulary of {self._pairs.tokenizer.vocabulary_size:,}"

    def make_model(self) -> keras.Model:
        """Returns a fresh model for the images and the vocabulary."""
        tokenizer = self._pairs.tokenizer
        return fresh_model(
            self._config.model,
            models.PairModel,
            f"{self._pairs.name!r} holds image-text pairs",
            "@LIMoE or @TwoTower",
            image_size=self._config.image_size,
            channels=self._config.image_channels(self._pairs),
            vocabulary_size=tokenizer.vocabulary_size,
            text_length=tokenizer.length,
            eos_id=tokenizer.eos_id,
        )

    def training_batches(
        self, start_step: int = 0, shards: int = 1, shard: int = 0
    ) -> tf.data.Dataset:
        """Returns endless batches of `{"image", "tokens"}`."""
        arguments = _training(self._config, self._pairs, start_step, shards, shard)
        return data.make_pairs(self._pairs.train, self._pairs.tokenizer, **arguments)

    def held_out_batches(self, batch_size: int, shards: int = 1, shard: int = 0) -> tf.data.Dataset:
        """Returns batches of `{"image", "tokens", "mask"}`, padded at the end."""
        arguments = _held_out(self._config, self._pairs, batch_size, shards, shard)
        return data.make_pairs(self._pairs.eval, self._pairs.tokenizer, **arguments)

    def inputs(self, batch: Batch) -> dict[str, tf.Tensor]:
        """Returns images and tokens, by the model's names."""
        return {"images": batch["image"], "tokens": batch["tokens"]}

    def judge(self, batch: Batch, outputs: Any, training: bool) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns the contrastive loss of each pair among those of its batch, and whether image and
        text find each other there."""
        logits, kind = ops.contrastive_outputs(outputs, batch.get("mask"))
        return ops.contrastive_loss(logits, kind), ops.contrastive_hits(logits)

    def save(self, model: keras.Model, workdir: Workdir) -> None:
        """Writes `model.keras`: raw images and texts to embeddings."""
        tokenizer = self._pairs.tokenizer
        results.save_model(models.ImageTextModel(model, tokenizer.model), workdir)


def _refuse_backbone(config: TrainConfig, name: str) -> None:
    if config.backbone is not None:
        raise ValueError(
            f"train.backbone is of object detection, but {name!r} holds no boxes: leave it out"
        )


def _training(
    config: TrainConfig,
    source: data.ImageSource | Pairs,
    start_step: int,
    shards: int,
    shard: int,
) -> dict[str, Any]:
    """How both kinds of data are read for training."""
    return {
        **_reading(config, source, config.batch_size, shards, shard),
        "training": True,
        "seed": config.seed,
        "start_step": start_step,
        "crop": config.crop,
        "augment": config.augment,
    }


def _held_out(
    config: TrainConfig,
    source: data.ImageSource | Pairs,
    batch_size: int,
    shards: int,
    shard: int,
) -> dict[str, Any]:
    """How both kinds of held-out data are read."""
    reading = _reading(config, source, batch_size, shards, shard)
    return {**reading, "crop": config.eval_crop, "pad": True}


def _reading(
    config: TrainConfig,
    source: data.ImageSource | Pairs,
    batch_size: int,
    shards: int,
    shard: int,
) -> dict[str, Any]:
    return {
        "batch_size": batch_size,
        "image_size": config.image_size,
        "channels": config.image_channels(source),
        "num_shards": shards,
        "shard_index": shard,
        "cache": config.cache,
    }


def verify(source: data.ImageSource | data.BoxSource | Pairs) -> None:
    """Has the data name a file that cannot be decoded, which TensorFlow's errors do not.

    Args:
        source: a run's data.

    Raises:
        ValueError: as `data.verify`, of examples to train on or held out.
    """
    data.verify(source.train)
    data.verify(source.eval)


def make_task(config: TrainConfig, source: data.ImageSource | data.BoxSource | Pairs) -> Task:
    """Returns what a run learns of its data.

    Args:
        config: the run's parameters.
        source: its data.

    Raises:
        ValueError: a parameter that is not of the task.
    """
    if isinstance(source, Pairs):
        return Contrast(config, source)
    if isinstance(source, data.BoxSource):
        return Detection(config, source)
    return Classification(config, source)
