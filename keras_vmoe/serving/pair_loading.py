"""Exported models of image-text pairs, run in their own runtimes."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from keras_vmoe import text
from keras_vmoe.ops.validation import require
from keras_vmoe.serving import saved_model
from keras_vmoe.serving.loading import MODULES, ExportedModel, load, pairs_file
from keras_vmoe.serving.metadata import Metadata, check_size
from keras_vmoe.text.tokenizer import import_tensorflow_text

#: The endpoints, and signatures, of a SavedModel.
ENDPOINTS = ("encode_image", "encode_text")
#: Beside the two files of the other formats.
TOKENIZER = "tokenizer.model"


@dataclasses.dataclass(frozen=True)
class PairMetadata:
    """The facts of an exported model of image-text pairs.

    A SavedModel has them as `assets.extra/keras_vmoe_pairs.json`, a folder of ONNX or LiteRT files
    as `keras_vmoe_pairs.json`.

    Attributes:
        image, text: of the two encoders. The text of a SavedModel are strings, of the other formats
            the tokens of `tokenizer.model`, as many as the shape says, the rest filled up with its
            end of sentence.
        imports: modules whose operations are in the graph: import them before the model is loaded.

    Example:

    >>> from keras_vmoe.serving import Metadata, PairMetadata
    >>> image = Metadata("onnx", "images", (1, 8, 8, 1), "float32", "embeddings", (1, 4))
    >>> texts = Metadata("onnx", "tokens", (None, 16), "int32", "embeddings", (None, 4))
    >>> facts = PairMetadata(image, texts)
    >>> facts.format, PairMetadata.from_json(facts.to_json()) == facts
    ('onnx', True)
    """

    image: Metadata
    text: Metadata
    imports: tuple[str, ...] = ()

    @property
    def format(self) -> str:
        """`"saved_model"`, `"onnx"` or `"litert"`."""
        return self.image.format

    def to_json(self) -> str:
        """The facts as an object of JSON."""
        return json.dumps(dataclasses.asdict(self), indent=2, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, content: str) -> PairMetadata:
        """The reverse of `to_json`.

        Raises:
            ValueError: no JSON, no object, a field that is missing or of another kind.
        """
        facts = json.loads(content)
        found = facts if isinstance(facts, dict) else {}
        require(
            {"image", "text"} <= set(found),
            f"metadata must be an object with the fields image, text. Received: {content[:80]!r}",
        )
        image, texts = (Metadata.from_json(json.dumps(found[name])) for name in ("image", "text"))
        imports = found.get("imports", [])
        good = isinstance(imports, list) and all(isinstance(name, str) for name in imports)
        require(good, f"imports must be a list of strings. Received: imports={imports!r}")
        return cls(image, texts, tuple(imports))


class ExportedPairModel:
    """An exported model of image-text pairs; `load_pairs` makes it.

    Args:
        path: its folder.
        metadata: its facts.
        image: the encoder of images.
        text: the encoder of texts: of strings, or of tokens.
        tokenizer: makes the tokens; `None`: the encoder takes strings.
    """

    def __init__(
        self,
        path: Path,
        metadata: PairMetadata,
        image: ExportedModel,
        text: ExportedModel,
        tokenizer: text.Tokenizer | None = None,
    ) -> None:
        self.path, self.metadata = path, metadata
        self.image, self.text, self.tokenizer = image, text, tokenizer

    def encode_image(self, images: Any) -> np.ndarray:
        """Embeddings of images, `[b, d]`, of length 1.

        Args:
            images: as `metadata.image` says: 0 to 255.

        Raises:
            ValueError: images of another shape.
        """
        return self.image(images)

    def encode_text(self, texts: Sequence[str]) -> np.ndarray:
        """Embeddings of texts, `[b, d]`, of length 1.

        Args:
            texts: strings; longer ones than the model takes are cut.

        Raises:
            ValueError: a single string, or an empty text.
        """
        require(
            not isinstance(texts, str),
            f"texts must be a list of strings. Received: texts={texts!r}; write [{texts!r}]",
        )
        for place, one in enumerate(texts):
            require(
                len(one.strip()) > 0,
                f"texts must not be empty. Received: texts[{place}] without a word",
            )
        return self.text(texts if self.tokenizer is None else self.tokenizer(texts).numpy())


def load_pairs(path: str | Path) -> ExportedPairModel:
    """Loads what `export_pairs` wrote, to run it in its own runtime.

    Args:
        path: the folder.

    Returns:
        An `ExportedPairModel`.

    Raises:
        FileNotFoundError: there is nothing at `path`.
        ValueError: it was not written by `export_pairs`, or its metadata was altered.
        ImportError: the runtime is not installed, or the libraries of the tokenizer.

    Example:

    >>> import tempfile
    >>> from keras_vmoe import models, serving, text
    >>> words = text.train_tokenizer(["a cat", "a dog"], vocabulary_size=40)
    >>> sizes = dict(image_size=16, patch_size=8, num_layers=1, width=8, mlp_dim=8, num_heads=2)
    >>> towers = models.TwoTower(**sizes, vocabulary_size=words.vocabulary_size)
    >>> path = tempfile.mkdtemp() + "/served"
    >>> _ = serving.export_pairs(models.ImageTextModel(towers, words.model), path)
    >>> serving.load_pairs(path).encode_text(["a cat", "the dog"]).shape
    (2, 8)
    """
    path = Path(path).expanduser()
    metadata = read_metadata(path)
    if metadata.format == "saved_model":
        # The ops of the tokenizer, without which TensorFlow cannot read the graph.
        import_tensorflow_text()
        loaded = tf.saved_model.load(str(path))
        image, texts = (
            ExportedModel(path, facts, saved_model.endpoint(loaded, name))
            for name, facts in zip(ENDPOINTS, (metadata.image, metadata.text), strict=True)
        )
        return ExportedPairModel(path, metadata, image, texts)
    image, texts = (load(path / name) for name in file_names(metadata.format))
    length = metadata.text.input_shape[1]
    return ExportedPairModel(
        path, metadata, image, texts, text.Tokenizer.load(path / TOKENIZER, length)
    )


def file_names(file_format: str) -> tuple[str, str]:
    """The files of the two encoders, in a format that has one graph a file."""
    suffix = {"onnx": ".onnx", "litert": ".tflite"}[file_format]
    return f"image{suffix}", f"text{suffix}"


def read_metadata(path: Path) -> PairMetadata:
    """The facts of an exported model of pairs.

    Raises:
        FileNotFoundError, ValueError: as `load_pairs`.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path}: there is no such folder")
    file = pairs_file(path)
    require(
        file.is_file(),
        f"path must be a folder that keras_vmoe.serving.export_pairs wrote. Received: {path}",
    )
    try:
        check_size(file.stat().st_size)
        metadata = PairMetadata.from_json(file.read_text(encoding="utf-8"))
        require(metadata.format in MODULES, f"format={metadata.format!r} is unknown")
    except ValueError as error:
        raise ValueError(f"{file} cannot be read: {error}; export it again") from error
    return metadata
