"""Export of a model of image-text pairs: its two encoders."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path

import keras
import numpy as np

from keras_vmoe import models
from keras_vmoe.models.classifier import preprocess
from keras_vmoe.ops.validation import require, require_choice
from keras_vmoe.serving import saved_model
from keras_vmoe.serving.exporting import FORMATS, check_arguments
from keras_vmoe.serving.graph import traced, traced_texts
from keras_vmoe.serving.loading import MODULES, SUFFIXES, pairs_file
from keras_vmoe.serving.metadata import PAIRS_FILE_NAME
from keras_vmoe.serving.pair_loading import (
    ENDPOINTS,
    TOKENIZER,
    PairMetadata,
    file_names,
    load_pairs,
    read_metadata,
)
from keras_vmoe.serving.targets import move
from keras_vmoe.serving.verification import compare_with_keras

_LETTERS = np.array(list("abcdefghijklmnopqrstuvwxyz0123456789 "))
_MAX_LETTERS = 60


def export_pairs(
    model: models.ImageTextModel,
    path: str | Path,
    format: str = "saved_model",
    batch_size: int | None = 1,
    verify: bool = True,
    overwrite: bool = False,
) -> PairMetadata:
    """Exports the two encoders of a model of image-text pairs, and runs them beside Keras.

    A SavedModel has the endpoints, and signatures, `encode_image`, of images of any size, 0 to 255,
    and `encode_text`, of strings: the tokenizer is in the graph, so a process that loads it has to
    `import tensorflow_text`. The other formats have no strings: the folder then holds
    `image.onnx` and `text.onnx` (or `.tflite`), of images of the model's size, 0 to 255, and of
    tokens, and the `tokenizer.model` that makes them. Graphs and routing are as of `export`.

    Args:
        model: as a run on image-text pairs saves it.
        path: a folder.
        format: `"saved_model"`, `"onnx"` or `"litert"`.
        batch_size: images of a batch; `None`: any number. Texts may always be any number: where a
            model drops tokens out of training (`eval_capacity_factor`), those of a routing group
            compete; export within `images_alone(model)` to route each text alone.
        verify: run both in their own runtime on random inputs.
        overwrite: replace what `export_pairs` wrote there before, and nothing else.

    Returns:
        The facts of both encoders.

    Raises:
        ValueError: another kind of model, a path that is no folder, and as for `export`.
        FileExistsError: there is something at `path`; with `overwrite`, something that
            `export_pairs` did not write.
        ImportError: the packages of the format, or of the tokenizer, are not installed.
        RuntimeError: an encoder does not give what Keras gives.

    Example:

    >>> import tempfile
    >>> from keras_vmoe import models, serving, text
    >>> words = text.train_tokenizer(["a cat", "a dog"], vocabulary_size=40)
    >>> sizes = dict(image_size=16, patch_size=8, num_layers=1, width=8, mlp_dim=8, num_heads=2)
    >>> towers = models.TwoTower(**sizes, vocabulary_size=words.vocabulary_size)
    >>> model = models.ImageTextModel(towers, words.model)
    >>> facts = serving.export_pairs(model, tempfile.mkdtemp() + "/served")
    >>> facts.image.input_shape, facts.text.input_dtype, facts.imports
    ((1, None, None, 3), 'string', ('tensorflow_text',))
    """
    require(
        isinstance(model, models.ImageTextModel),
        f"model must be an ImageTextModel, as runs on image-text pairs save it. Received: a "
        f"{type(model).__name__}",
    )
    require_choice("format", format, FORMATS)
    encoders = _image_encoder(model, format != "saved_model"), _text_encoder(model)
    for encoder in encoders:
        check_arguments(encoder, format, batch_size)
    target = _check_target(path, format, overwrite)
    target.parent.mkdir(parents=True, exist_ok=True)
    # As `export`: a folder that fails the comparison is never there.
    with tempfile.TemporaryDirectory(prefix=".export-", dir=target.parent) as folder:
        draft = Path(folder) / target.name
        write = _write_saved_model if format == "saved_model" else _write_files
        metadata = write(model, encoders, format, batch_size, draft)
        if verify:
            _compare(model, encoders, draft)
        move(draft, target)
    return metadata


Encoders = tuple[keras.Model, keras.Model]


def _image_encoder(model: models.ImageTextModel, fixed_size: bool) -> keras.Model:
    """From raw images to embeddings."""
    encoder = model.model.image_encoder
    _, height, width, channels = encoder.input_shape
    shape = (height, width) if fixed_size else (None, None)
    images = keras.Input((*shape, channels), name="images", dtype="float32")
    prepared = preprocess(images, (height, width), model.value_range)
    found = models.FunctionalModel(images, encoder(prepared), name=encoder.name)
    found.input_range, found.gives_embeddings = model.input_range, True
    return found


def _text_encoder(model: models.ImageTextModel) -> keras.Model:
    """From tokens to embeddings."""
    encoder = model.model.text_encoder
    tokens = keras.Input(encoder.input_shape[1:], name="tokens", dtype="int32")
    found = models.FunctionalModel(tokens, encoder(tokens), name=encoder.name)
    found.gives_embeddings = True
    return found


def _write_saved_model(
    model: models.ImageTextModel,
    encoders: Encoders,
    file_format: str,
    batch_size: int | None,
    draft: Path,
) -> PairMetadata:
    image, texts = encoders
    with (
        traced(image, file_format, batch_size, fixed_shapes=False) as of_images,
        traced_texts(texts, model.tokenizer) as of_texts,
    ):
        graphs = dict(zip(ENDPOINTS, (of_images, of_texts), strict=True))
        extra = saved_model.write_several(graphs, draft)
    metadata = PairMetadata(of_images.metadata, of_texts.metadata, ("tensorflow_text",))
    (extra / PAIRS_FILE_NAME).write_text(metadata.to_json(), encoding="utf-8")
    return metadata


def _write_files(
    model: models.ImageTextModel,
    encoders: Encoders,
    file_format: str,
    batch_size: int | None,
    draft: Path,
) -> PairMetadata:
    draft.mkdir()
    facts = []
    for encoder, name, size in zip(
        encoders, file_names(file_format), (batch_size, None), strict=True
    ):
        with traced(encoder, file_format, size, fixed_shapes=True) as graph:
            MODULES[file_format].write(graph, draft / name)
        facts.append(graph.metadata)
    metadata = PairMetadata(*facts)
    (draft / TOKENIZER).write_bytes(model.tokenizer.model)
    (draft / PAIRS_FILE_NAME).write_text(metadata.to_json(), encoding="utf-8")
    return metadata


def _compare(model: models.ImageTextModel, encoders: Encoders, draft: Path) -> None:
    exported = load_pairs(draft)
    compare_with_keras(encoders[0], exported.image)
    if exported.tokenizer is None:
        compare_with_keras(encoders[1], exported.text, _random_texts, model.tokenizer)
    else:
        draw = functools.partial(_random_tokens, model)
        compare_with_keras(encoders[1], exported.text, draw)


def _random_texts(count: int, random: np.random.Generator) -> np.ndarray:
    """Strings of letters, digits and spaces, none of them empty."""
    lengths = random.integers(1, _MAX_LETTERS, count)
    texts = ["a" + "".join(random.choice(_LETTERS, length)) for length in lengths]
    return np.array(texts, object)


def _random_tokens(
    model: models.ImageTextModel, count: int, random: np.random.Generator
) -> np.ndarray:
    """Tokens of all kinds, the end among them: texts of any length."""
    shape = (count, model.tokenizer.length)
    return random.integers(0, model.tokenizer.vocabulary_size, shape, "int32")


def _check_target(path: str | Path, file_format: str, overwrite: bool) -> Path:
    target = Path(path).expanduser()
    require(
        target.suffix not in (*SUFFIXES, ".keras"),
        "path must be a folder: a model of image-text pairs has two encoders, in "
        f"format={file_format!r} too. Received: {path}",
    )
    if not target.exists():
        return target
    if not overwrite:
        raise FileExistsError(f"{target} exists; name another target, or overwrite it")
    words = f"{target} exists and is no exported model of pairs in format={file_format!r}"
    try:
        found = read_metadata(target)
    except ValueError as error:
        raise FileExistsError(
            f"{words}, so it is not overwritten; name another target ({error})"
        ) from error
    if found.format != file_format:
        raise FileExistsError(f"{words}, so it is not overwritten; name another target")
    foreign = _foreign_files(target, file_format)
    if foreign:
        raise FileExistsError(
            f"{target} holds {foreign[0]!r}, which is not of the exported model, so it is not "
            "overwritten; move that elsewhere, or name another target"
        )
    return target


def _foreign_files(target: Path, file_format: str) -> list[str]:
    if file_format == "saved_model":
        return saved_model.foreign_files(target)
    own = {*file_names(file_format), TOKENIZER, pairs_file(target).name}
    return sorted(file.name for file in target.iterdir() if file.name not in own)
