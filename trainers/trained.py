"""Trained models, found by the folder of their run or by their file."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from keras_vmoe import data, models, ops, text
from keras_vmoe.trainers import errors, gin_config, keras_file
from keras_vmoe.trainers.averaging import averaged_weights
from keras_vmoe.trainers.checkpointing import BEST, newest_first, step_of, written_after
from keras_vmoe.trainers.config import TrainConfig
from keras_vmoe.trainers.metrics_log import MetricsLog
from keras_vmoe.trainers.pairs import Pairs
from keras_vmoe.trainers.tasks import make_task
from keras_vmoe.trainers.workdir import Workdir

_DETECTOR = (
    "is a detector of objects, which this command does not take; see keras-vmoe evaluate and "
    "figures"
)
_WRONG_KIND = {
    False: "is a model of image-text pairs, without classes of its own; see keras-vmoe zeroshot, "
    "retrieval and fewshot",
    True: "is a model of images alone; give a run on image-text pairs, such as "
    "runs/limoe/quickstart.gin",
}
_NO_DATA = (
    "there are no images to evaluate {path} on; give --dataset=NAME, or a gin file that says, such "
    "as --gin_file=data/fashion_mnist.gin"
)
# What a gin file with data alone leaves out. Only the parameters of data are asked for then.
_FILLING = {
    "train.model": "@ViT",
    "train.optimizer": "@adamw",
    "train.image_size": "1",
    "train.dataset": "@dataset",
}


@dataclasses.dataclass(eq=False)
class Trained:
    """A trained model, and what is known of its data. Gin files are read when they are needed.

    Attributes:
        path: the run's workdir, or the model's file.
        model: from images in [-1, 1] to logits; of an ensemble, those of its members' mean
            probability. Or of image-text pairs, a `models.PairModel`; or a `models.RetinaNet`.
        class_names: a name per logit; empty where they are not known.
        origin: where the weights are from, in words.
        gin_files: say the data: the run's config first, then those that were given.
        gin_bindings: win over them.
        tokenizer: of a model of pairs; `None` for others.
    """

    path: Path
    model: keras.Model
    class_names: tuple[str, ...]
    origin: str
    gin_files: tuple[str, ...] = ()
    gin_bindings: tuple[str, ...] = ()
    tokenizer: text.Tokenizer | None = None

    @property
    def image_size(self) -> int:
        """The side of the images that the model takes, in pixels."""
        return self._of_images.input_shape[1]

    @property
    def channels(self) -> int:
        """The channels of these images."""
        return self._of_images.input_shape[-1]

    @property
    def _of_images(self) -> keras.Model:
        return self.model.image_encoder if self.tokenizer else self.model

    @property
    def detects(self) -> bool:
        """Whether the model finds objects, which is no classifier then."""
        return isinstance(self.model, models.RetinaNet)

    @property
    def num_classes(self) -> int:
        """The number of logits."""
        return self.model.output_shape[-1]

    @functools.cached_property
    def config(self) -> TrainConfig | None:
        """The run's parameters as its gin files have them; `None` without any.

        Where these are not those of a run, only the parameters of data mean something.
        """
        if not self.gin_files and not self.gin_bindings:
            return None
        with self._gin() as config:
            return config

    @property
    def loss(self) -> str:
        """What the run was trained with, which says what its logits mean: of "softmax" one class is
        right, of "sigmoid" each has a probability of its own. "softmax" where there is no run."""
        return "softmax" if self.config is None else self.config.loss

    def image_losses(self, labels: Any, logits: Any) -> Any:
        """The loss of each image that the run was trained with; softmax cross entropy where there
        is no run."""
        if self.config is None:
            return ops.classification_loss(labels, logits)
        return self.config.image_losses(labels, logits)

    @functools.cached_property
    def source(self) -> data.ImageSource | data.BoxSource | Pairs:
        """The images of the gin files, with classes, texts or boxes.

        Raises:
            ValueError: if none are known.
            OSError: if they cannot be read.
        """
        if not self.gin_files and not self.gin_bindings:
            raise ValueError(_NO_DATA.format(path=self.path))
        with self._gin() as config:
            try:
                source = config.dataset()
            except TypeError as error:  # gin: `name` is not bound
                raise ValueError(_NO_DATA.format(path=self.path)) from error
        if self.detects != isinstance(source, data.BoxSource):
            raise ValueError(
                f"{source.name} is no data for {self.origin}: detectors of objects take images "
                "with boxes, and other models images without"
            )
        if self.tokenizer and not isinstance(source, Pairs):
            raise ValueError(
                f"{source.name} holds labelled images, but {self.origin} is a model of image-text "
                "pairs: see keras-vmoe zeroshot"
            )
        return source

    def eval_batches(
        self, batch_size: int | None = None, split: data.Split | None = None
    ) -> tf.data.Dataset:
        """The images of a split as the model takes them, each once and in order.

        Args:
            batch_size: images of a batch; `train.eval_batch_size` by default.
            split: of any source; the held-out images of `source` by default.

        Returns:
            Batches of `{"image": [b, s, s, channels] in [-1, 1], "label": [b]}`; the last may be
            smaller.
        """
        split = self.source.eval if split is None else split
        size = batch_size or (self.config.eval_batch_size if self.config else 256)
        return data.make_dataset(
            split,
            batch_size=min(size, split.num_examples),
            image_size=self.image_size,
            channels=self.channels,
            crop=self.config.eval_crop if self.config else None,
        )

    def classifier(self) -> models.Classifier:
        """The model with its preprocessing and the names of its classes.

        Raises:
            ValueError: if these are not known.
        """
        if not self.class_names:
            raise ValueError(
                f"{self.origin} holds a model without class names; `keras-vmoe convert` gives "
                "it some with --class_names=FILE, as models.Classifier(model, class_names) does"
            )
        return models.Classifier(self.model, self.class_names)

    @contextlib.contextmanager
    def _gin(self) -> Iterator[TrainConfig]:
        """The config, in a block where what it refers to can be called."""
        with _separate_gin():
            _parse(self.gin_files, self.gin_bindings)
            from keras_vmoe.trainers import configurables

            yield configurables.train_config()


def load(
    path: str | Path,
    gin_files: Sequence[str] = (),
    gin_bindings: Sequence[str] = (),
    pairs: bool | None = False,
    boxes: bool | None = False,
) -> Trained:
    """Loads a trained model.

    Args:
        path: the workdir of a run, finished or not, or a `.keras` file of a classifier of images,
            or `WORKDIR/checkpoints/best`.
            Of a finished run `model.keras` is loaded; otherwise the model of `config.gin` gets
            the weights of the newest checkpoint that is whole (their average, if there is one).
        gin_files: other data to evaluate on, such as "data/fashion_mnist.gin".
        gin_bindings: bindings such as "dataset.name='cifar10'", which win.
        pairs: whether a model of image-text pairs is wanted, or one of images; None takes either.
        boxes: whether a detector of objects is wanted, or another model; None takes either.

    Returns:
        A `Trained`. What gin is set to elsewhere in the process stays as it is.

    Raises:
        FileNotFoundError: if there is nothing at `path`.
        ValueError: if it is neither a run nor a model of square images, or the wrong kind.

    Example:
        >>> import tempfile
        >>> sizes = dict(image_size=16, patch_size=8, width=8, mlp_dim=8, num_heads=2)
        >>> vit = models.ViT(**sizes, num_layers=1, num_classes=2)
        >>> file = Path(tempfile.mkdtemp()) / "model.keras"
        >>> models.Classifier(vit, ["cat", "dog"]).save(file)
        >>> trained = load(file)
        >>> trained.image_size, trained.channels, trained.class_names
        (16, 3, ('cat', 'dog'))
    """
    place = Path(path).expanduser()
    if not place.exists():
        raise FileNotFoundError(
            f"{path}: there is no such file or folder; give a run's workdir or a .keras file"
        )
    files, bindings = tuple(gin_files), tuple(gin_bindings)
    if place.is_dir() and place.name == BEST and place.parent.name == "checkpoints":
        found = _load_best(place, files, bindings)
    elif place.is_dir():
        found = _load_run(place, files, bindings)
    else:
        found = _load_file(place).trained(place, str(place), files, bindings)
    if boxes is not None and boxes != found.detects:
        why = (
            _DETECTOR
            if found.detects
            else "is no detector of objects; give a run on images with boxes"
        )
        raise ValueError(f"{found.origin} {why}")
    if not found.detects and pairs is not None and pairs != (found.tokenizer is not None):
        raise ValueError(f"{found.origin} {_WRONG_KIND[pairs]}")
    return found


class _Weights(NamedTuple):
    """A model with its weights, and what is known of its outputs and its texts."""

    model: keras.Model
    class_names: tuple[str, ...] = ()
    tokenizer: text.Tokenizer | None = None

    def trained(
        self, path: Path, origin: str, files: tuple[str, ...], bindings: tuple[str, ...]
    ) -> Trained:
        """These, with where they are from and what says their data."""
        return Trained(path, self.model, self.class_names, origin, files, bindings, self.tokenizer)


def _load_best(best: Path, gin_files: tuple[str, ...], bindings: tuple[str, ...]) -> Trained:
    """The best checkpoint of a run, as `WORKDIR/checkpoints/best` names it."""
    config = best.parent.parent / "config.gin"
    if not config.is_file():
        raise ValueError(f"{best} is not in the workdir of a run: {config} is missing")
    weights, step, _ = _from_checkpoint(best, config)
    return weights.trained(best, f"{best}, step {step:,}", (str(config), *gin_files), bindings)


def _load_run(folder: Path, gin_files: tuple[str, ...], bindings: tuple[str, ...]) -> Trained:
    file, config = folder / "model.keras", folder / "config.gin"
    newest = newest_first(folder / "checkpoints")[:1]
    files = ((str(config),) if config.is_file() else ()) + gin_files
    is_whole = zipfile.is_zipfile(file)
    if file.is_file() and not is_whole and newest:
        errors.warn(f"{file} is damaged; taking the newest checkpoint beside it")
    # A run that goes on after its end has checkpoints that are newer than its model.
    if file.is_file() and (is_whole or not newest) and all(written_after(file, p) for p in newest):
        return _load_file(file).trained(folder, str(file), files, bindings)
    if not config.is_file():
        raise ValueError(
            f"{folder} is not the workdir of a run: it holds neither model.keras nor config.gin"
        )
    if not newest:
        raise ValueError(
            f"{folder} holds no checkpoint yet; let keras-vmoe train go on, or give another workdir"
        )
    weights, step, total = _from_checkpoint(folder / "checkpoints", config)
    origin = f"{folder}, step {step:,}" + (" (not finished)" if step < total else "")
    return weights.trained(folder, origin, files, bindings)


# Twins.


def no_twin(dense: Trained, model: Trained) -> str | None:
    """Says why a model cannot be measured beside a sparse one as its dense twin, if it cannot.

    Twins were trained on the same images of the same size, of the same classes, for as many steps.
    What is not known, of a `.keras` file without its run, is not compared.

    Args:
        dense: the model without experts.
        model: the sparse one.

    Returns:
        The reason, to stand behind the flag and its value, or `None`.
    """
    if models.is_sparse(dense.model):
        return "is no dense run: its model has MoE layers; give one without"
    facts, others = _training(dense), _training(model)
    for name, value in facts.items():
        if name in others and value != others[name]:
            return (
                f"is no twin of {model.path}: {name}={value}, not {others[name]}; give a dense run "
                "that was trained alike"
            )
    return None


def _training(trained: Trained) -> dict[str, Any]:
    """What twins have in common, as far as it is known. The dataset is that of the run itself,
    whatever it is evaluated on."""
    facts: dict[str, Any] = {}
    best = trained.path.name == BEST and trained.path.parent.name == "checkpoints"
    folder = trained.path.parent.parent if best else trained.path
    config = folder / "config.gin"
    if config.is_file():
        bindings = gin_config.bindings(config.read_text(encoding="utf-8"))
        dataset = bindings.get("train.dataset", "@dataset").lstrip("@")
        for name in ("name", "train_split"):
            if f"{dataset}.{name}" in bindings:
                facts[f"dataset.{name}"] = bindings[f"{dataset}.{name}"]
    facts["image_size"], facts["channels"] = trained.image_size, trained.channels
    facts["num_classes"] = trained.num_classes
    if trained.class_names:
        facts["class_names"] = ", ".join(trained.class_names)
    if rows := MetricsLog(folder / "metrics.jsonl").rows():
        facts["steps"] = rows[-1]["step"]
    return facts


# Files.


def _load_file(file: Path) -> _Weights:
    """The model on images in [-1, 1]: to logits, with the names of its classes, or of pairs."""
    model = keras_file.load(file)
    if isinstance(model, models.ImageTextModel):
        if model.value_range != (-1.0, 1.0):
            raise ValueError(
                f"{file} holds a model of images in {model.value_range}, but the commands take "
                "those in (-1, 1); use its own encode_image and encode_text"
            )
        return _Weights(model.model, (), model.tokenizer)
    if isinstance(model, models.RetinaNet):
        return _Weights(model, model.class_names)
    names: tuple[str, ...] = ()
    if isinstance(model, models.Classifier):
        model, names = _logits_model(model), tuple(model.class_names)
    if len(getattr(model, "output_shape", None) or ()) == 3:
        model = models.averaged_prediction(model)
    inputs, outputs = getattr(model, "input_shape", None), getattr(model, "output_shape", None)
    images = isinstance(inputs, tuple) and len(inputs) == 4 and None not in inputs[1:]
    if not images or inputs[1] != inputs[2] or inputs[3] not in (1, 3) or len(outputs) != 2:
        raise ValueError(
            f"{file} must hold a model from square images of 1 or 3 channels to logits. "
            f"Received: a {type(model).__name__} from {inputs} to {outputs}"
        )
    return _Weights(model, names)


def _logits_model(classifier: models.Classifier) -> keras.Model:
    low, high = classifier.value_range
    if (low, high) == (-1.0, 1.0):
        return classifier.model
    images = keras.Input(classifier.model.input_shape[1:])
    rescale = keras.layers.Rescaling((high - low) / 2, (high + low) / 2, dtype="float32")
    model = models.FunctionalModel(images, classifier.model(rescale(images)))
    model.input_range, model.gives_logits = (-1.0, 1.0), True
    return model


# Checkpoints.


def _from_checkpoint(folder: Path, config_file: Path) -> tuple[_Weights, int, int]:
    """The model that a run's config describes, with the weights of the newest checkpoint of a
    folder; the step; the steps of the whole run."""
    if not config_file.read_text(encoding="utf-8").strip():
        raise ValueError(f"{config_file} is empty, which tells of which model the checkpoints are")
    with _separate_gin():
        _parse([str(config_file)], [])
        from keras_vmoe.trainers import configurables

        config = configurables.train_config()
        source = config.dataset()
        if isinstance(source, Pairs):
            source.take_tokenizer(Workdir(config_file.parent).tokenizer)
        model = make_task(config, source).make_model()
        steps = source.train.steps_per_epoch(config.batch_size)
        total = config.total_steps(steps)
        optimizer = config.optimizer(total_steps=total, steps_per_epoch=steps)
    optimizer.build(model.trainable_variables)
    checkpoint = tf.train.Checkpoint(model=model, optimizer=optimizer)
    restored = _restore(checkpoint, folder, config_file)
    with averaged_weights(model, optimizer):
        averaged = model.get_weights()
    model.set_weights(averaged)
    if isinstance(source, Pairs):
        found = _Weights(model, (), source.tokenizer)
    elif isinstance(source, data.BoxSource):
        found = _Weights(model, source.class_names)
    else:
        model = models.averaged_prediction(model, config.loss)
        found = _Weights(model, source.class_names)
    return found, step_of(restored), total


def _restore(checkpoint: tf.train.Checkpoint, folder: Path, config_file: Path) -> str:
    """Restores the newest checkpoint that can be read, and returns its path."""
    reasons = []
    for path in newest_first(folder):
        try:
            status = checkpoint.restore(path)
            status.expect_partial().assert_existing_objects_matched()
        except (tf.errors.OpError, IndexError) as error:
            reasons.append(f"{Path(path).name}: {str(error).splitlines()[0]}")
        except (ValueError, AssertionError) as error:
            raise ValueError(
                f"{path} is not of the model of {config_file}: {str(error).splitlines()[0]}"
            ) from error
        else:
            for reason in reasons:
                errors.warn(f"{folder}: a checkpoint is damaged and passed over, {reason}")
            return path
    raise ValueError(f"{folder} holds no checkpoint that can be read ({'; '.join(reasons)})")


# Gin.


def _parse(files: Sequence[str], bindings: Sequence[str]) -> None:
    """Reads gin files, and fills in what those of data alone leave out."""
    gin = gin_config.load()
    try:
        gin_config.parse(files, bindings)
    except (ValueError, SyntaxError) as error:
        where = f" ({', '.join(files)})" if files else ""
        raise ValueError(f"{errors.one_line(error)}{where}") from error
    for name, value in _FILLING.items():
        try:
            gin.query_parameter(name)
        except ValueError:  # not bound
            gin.parse_config(f"{name} = {value}")


@contextlib.contextmanager
def _separate_gin() -> Iterator[None]:
    """Puts gin back, after a `with` block, to what it was: a run may be under way.

    Gin has one global config and no way to have another for a while; these are the private names
    of what `gin.clear_config` clears.
    """
    state = gin_config.load().config
    names = ("_CONFIG", "_OPERATIVE_CONFIG", "_SINGLETONS", "_IMPORTS")
    kept = {name: getattr(state, name).copy() for name in names}
    try:
        yield
    finally:
        for name, value in kept.items():
            holder = getattr(state, name)
            holder.clear()
            holder.update(value)
