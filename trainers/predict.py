"""`keras-vmoe predict`: the classes of image files, and where their patches went."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from absl import flags

from keras_vmoe.trainers import command_line, errors, image_files
from keras_vmoe.trainers.errors import UsageError

if TYPE_CHECKING:
    from keras_vmoe import models, serving

_SYNOPSIS = "predict MODEL IMAGE_OR_FOLDER... [--top=5] [--routing=DIR] [--json]"
_TEXT = """
Prints the likeliest classes of each image and their probabilities. MODEL is a .keras file, the
workdir of a run, or what keras-vmoe export wrote of it (with a batch of 1, or dynamic). IMAGES are
PNG, JPEG, BMP and GIF files of any size, and folders of such files at any depth. Each is squashed
to the model's size and routed alone, with the capacity that the model has for a single image, so
that what is said of it does not depend on the others; --capacity_factor=E, the number of experts,
drops no patch. Images that cannot be read are named and left out; the exit code is then 1.

Probabilities are the softmax of the logits; of the workdir of a run with train.loss = 'sigmoid',
the sigmoid of each. A .keras file or an export does not tell its loss: of such a run, give the
workdir.

  keras-vmoe predict workdir/quickstart-seed0 photo.png
  keras-vmoe predict model.keras folder/ --routing=pictures --json > classes.jsonl
"""


class _Predictor(NamedTuple):
    """A model as it is asked here.

    `logits` takes `[b, height, width, channels]` float32 from 0 to 255, of `size` where that is not
    `None`, b at most `batch_size`. `classifier` is the Keras model, if there is one. `loss` says
    what the logits mean.
    """

    logits: Callable[[np.ndarray], np.ndarray]
    class_names: Sequence[str]
    size: tuple[int, int] | None
    channels: int
    batch_size: int
    classifier: models.Classifier | None = None
    loss: str = "softmax"


def _flags() -> flags.FlagValues:
    values = command_line.new_flags()
    flags.DEFINE_float(
        "capacity_factor", None, "Slots per choice (C). Default: the model's.", flag_values=values
    )
    flags.DEFINE_integer("top", 5, "Classes to print. Default: 5.", 1, flag_values=values)
    flags.DEFINE_string(
        "routing", None, "A folder for pictures of each image's routing.", flag_values=values
    )
    flags.DEFINE_boolean("json", False, "Print an object of JSON per image.", flag_values=values)
    flags.DEFINE_integer(
        "batch_size", 32, "Images that are run at once. Default: 32.", 1, flag_values=values
    )
    return values


def main(argv: Sequence[str]) -> int:
    """Runs `keras-vmoe predict`.

    Args:
        argv: the words after `predict`.

    Returns:
        The exit code: 1 if images could not be read.

    Raises:
        UsageError: a wrong command line.
        ValueError: no model, one without class names, or no routing to draw.
        OSError: images or a model that are not there.

    Example:
        >>> main(["--help"])  # doctest: +ELLIPSIS
        usage: keras-vmoe predict ...
        0
    """
    values = _flags()
    words = command_line.parse(values, argv, "predict")
    if values.help:
        print(command_line.help_text(values, _SYNOPSIS, _TEXT), end="")
        return 0
    if len(words) < 2:
        raise UsageError(
            "predict: give MODEL and at least one image or folder; see keras-vmoe predict --help"
        )
    paths = image_files.find(words[1:])
    predictor = _load(words[0], values.batch_size, values.capacity_factor)
    pictures = _Pictures(values.routing, predictor) if values.routing else None
    unread = _predict(predictor, paths, values.top, values.json, pictures)
    if unread:
        raise ValueError(f"{unread} of {len(paths)} images cannot be read; they are named above")
    return 0


# The model.


def _load(word: str, batch_size: int, capacity_factor: float | None) -> _Predictor:
    if not Path(word).expanduser().exists():
        raise FileNotFoundError(
            f"{word}: there is no such file or folder; give a run's workdir, a .keras file or an "
            "exported model"
        )
    from keras_vmoe import serving
    from keras_vmoe.serving.loading import exported_format, holds_pairs
    from keras_vmoe.trainers import trained

    path = Path(word).expanduser()
    if exported_format(path) or holds_pairs(path):
        if capacity_factor is not None:
            raise ValueError(
                f"--capacity_factor={capacity_factor:g} cannot change {word}; give it to "
                "keras-vmoe export"
            )
        return _of_exported(serving.load(word))
    model = trained.load(word)
    predictor = _of_classifier(model.classifier(), batch_size, capacity_factor)
    return predictor._replace(loss=model.loss)


def _of_classifier(
    classifier: models.Classifier, batch_size: int, capacity_factor: float | None
) -> _Predictor:
    import keras

    from keras_vmoe import models, serving

    if capacity_factor is not None:
        classifier = models.with_routing(classifier, capacity_factor=capacity_factor)
    height, width, channels = classifier.model.input_shape[1:]

    def logits(images: np.ndarray) -> np.ndarray:
        with serving.images_alone(classifier):
            return keras.ops.convert_to_numpy(classifier(images, training=False))

    names = classifier.class_names
    return _Predictor(logits, names, (height, width), channels, batch_size, classifier)


def _of_exported(model: serving.ExportedModel) -> _Predictor:
    facts = model.metadata
    if facts.output_name == "embeddings":
        raise ValueError(
            f"{model.path} holds an encoder of image-text pairs, without classes of its own; see "
            "keras-vmoe zeroshot, of the workdir or the .keras file that it was made of"
        )
    if not facts.class_names:
        raise ValueError(
            f"{model.path} holds a model without class names; export a model that has some: "
            "`keras-vmoe convert` gives it some with --class_names=FILE, as models.Classifier does"
        )
    if facts.batch_size not in (None, 1):
        raise ValueError(
            f"{model.path} takes batches of {facts.batch_size}, whose images are routed together; "
            "export it with --batch_size=1 or --batch_size=dynamic"
        )
    _, height, width, channels = facts.input_shape
    size = None if height is None else (height, width)
    return _Predictor(model, facts.class_names, size, channels, batch_size=1)


# What is said of the images.


def _predict(
    predictor: _Predictor,
    paths: Sequence[Path],
    top: int,
    as_json: bool,
    pictures: _Pictures | None,
) -> int:
    """Prints the classes of all images, and returns how many could not be read."""
    from keras_vmoe.trainers.work_progress import WorkProgress

    progress = WorkProgress(total_work=float(len(paths)))
    progress.begin(f"{len(paths):,} images", work=float(len(paths)))
    unread = done = 0
    for batch in _batches(predictor, paths):
        whole = [(path, image) for path, image in batch if not isinstance(image, str)]
        answers = iter(predictor.logits(np.stack([image for _, image in whole])) if whole else ())
        for path, image in batch:
            if isinstance(image, str):
                unread += 1
                progress.clear()
                errors.warn(f"{path} is left out: {image}")
                if as_json:
                    progress.print(_json({"image": str(path), "error": image}))
                continue
            best = _best(next(answers), predictor, top)
            progress.print(_as_json(path, best) if as_json else _as_text(path, best))
            if pictures is not None:
                pictures.draw(path, image)
        done += len(batch)
        progress.advance(done / len(paths))
    progress.clear()
    return unread


def _batches(
    predictor: _Predictor, paths: Sequence[Path]
) -> Iterator[list[tuple[Path, np.ndarray | str]]]:
    """The images as the predictor takes them, or why they cannot be read."""
    for begin in range(0, len(paths), predictor.batch_size):
        batch = []
        for path in paths[begin : begin + predictor.batch_size]:
            image = image_files.read(path, predictor.channels)
            if not isinstance(image, str):
                image = _resized(image, predictor.size)
            batch.append((path, image))
        yield batch


def _resized(image: np.ndarray, size: tuple[int, int] | None) -> np.ndarray:
    """As the model's own resizing does it, which takes only images of one size at a time."""
    import tensorflow as tf

    return image.astype("float32") if size is None else tf.image.resize(image, size).numpy()


def _best(logits: np.ndarray, predictor: _Predictor, top: int) -> list[tuple[str, float]]:
    """Names and probabilities of the likeliest classes."""
    logits, names = logits.astype("float64"), predictor.class_names
    if predictor.loss == "sigmoid":
        shares = np.exp(-np.logaddexp(0.0, -logits))
    else:
        shares = np.exp(logits - np.logaddexp.reduce(logits))
    return [(names[i], float(shares[i])) for i in np.argsort(-logits, kind="stable")[:top]]


def _as_text(path: Path, best: Sequence[tuple[str, float]]) -> str:
    return "\n".join([str(path), *(f"  {share:7.2%}  {name}" for name, share in best)])


def _as_json(path: Path, best: Sequence[tuple[str, float]]) -> str:
    classes = [{"name": name, "confidence": share} for name, share in best]
    return _json({"image": str(path), "classes": classes})


def _json(content: dict) -> str:
    return json.dumps(content, ensure_ascii=False)


class _Pictures:
    """Draws the routing of images into a folder, each under its own name.

    Args:
        folder: made if it is not there.
        predictor: of a Keras model with MoE layers.

    Raises:
        ValueError: a model of another kind.
        OSError: a folder that cannot be made.
    """

    def __init__(self, folder: str, predictor: _Predictor) -> None:
        from keras_vmoe import models

        classifier = predictor.classifier
        if classifier is None:
            raise ValueError(
                "--routing needs a .keras file or a workdir; an exported model does not show "
                "where its patches go"
            )
        if not models.is_sparse(classifier):
            raise ValueError("--routing needs a model with MoE layers, but this one is dense")
        self._classifier = classifier
        self._folder = Path(folder).expanduser()
        self._folder.mkdir(parents=True, exist_ok=True)
        self._taken: set[str] = set()

    def draw(self, path: Path, image: np.ndarray) -> None:
        """Draws one image `[height, width, channels]`, 0 to 255, of the model's size."""
        from keras_vmoe import analysis
        from keras_vmoe.analysis.figures import plot_routing

        records = analysis.routing_records(self._classifier, image[None])
        plot_routing(
            image[None],
            records,
            self._folder / self._name(path),
            max_images=1,
            max_layers=len(records),
            value_range=(0.0, 255.0),
        )

    def _name(self, path: Path) -> str:
        """`photo_routing.png` of `photo.jpg`, `photo_2_routing.png` of the next of that name: never
        the name of an image, beside which the pictures may lie."""
        name, count = path.stem, 1
        while name in self._taken:
            count += 1
            name = f"{path.stem}_{count}"
        self._taken.add(name)
        return f"{name}_routing.png"
