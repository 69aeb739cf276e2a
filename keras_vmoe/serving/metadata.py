"""What an exported file says of itself: its input, its classes, how its tokens are moved."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import keras
import numpy as np

from keras_vmoe.ops.validation import require

KEY = "keras_vmoe"
FILE_NAME = f"{KEY}.json"
#: Of a model of image-text pairs, whose encoders are two.
PAIRS_FILE_NAME = f"{KEY}_pairs.json"
#: What is read of a file: the names of a hundred thousand classes, and no archive that bursts.
MAX_BYTES = 16 * 2**20


def _is_axes(value: Any) -> bool:
    return isinstance(value, tuple) and all(x is None or type(x) is int for x in value)


def _is_range(value: Any) -> bool:
    numbers = isinstance(value, tuple) and all(type(x) in (int, float) for x in value)
    return value is None or (numbers and len(value) == 2 and value[0] < value[1])


def _is_dtype(value: Any) -> bool:
    try:
        return bool(keras.backend.standardize_dtype(value)) and isinstance(value, str)
    except ValueError:
        return False


def _are_names(values: Any) -> bool:
    return isinstance(values, tuple) and all(isinstance(x, str) for x in values)


def _are_ids(values: Any) -> bool:
    return isinstance(values, tuple) and all(type(x) is int for x in values)


# What each field must be in a file, which others may have altered.
_CHECKS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "format": (lambda value: isinstance(value, str), "a string"),
    "input_name": (lambda value: isinstance(value, str), "a string"),
    "input_shape": (lambda value: _is_axes(value) and len(value) > 0, "a list of sizes or null"),
    "input_dtype": (_is_dtype, "the name of a dtype"),
    "output_name": (lambda value: isinstance(value, str), "a string"),
    "output_shape": (_is_axes, "a list of sizes or null"),
    "value_range": (_is_range, "null or [low, high]"),
    "class_names": (_are_names, "a list of strings"),
    "precision": (lambda value: isinstance(value, str), "a string"),
    "experts_name": (lambda value: value is None or isinstance(value, str), "null or a string"),
    "superclasses": (_are_ids, "a list of whole numbers"),
    "dispatch": (
        lambda value: isinstance(value, dict) and _are_names(tuple(value.values())),
        "an object of strings",
    ),
}


@dataclasses.dataclass(frozen=True)
class Metadata:
    """The facts of an exported model.

    A SavedModel has them as `assets.extra/keras_vmoe.json`, an ONNX file among its own metadata as
    `keras_vmoe`, a LiteRT file as `keras_vmoe.json` in the zip archive behind the model, where
    `labels.txt` is too (`unzip model.tflite`).

    Attributes:
        format: `"saved_model"`, `"onnx"` or `"litert"`.
        input_name, input_shape, input_dtype: of the one input; `None` in the shape: any size.
        output_name, output_shape: of the one output.
        value_range: what the input has for black and white; `None` where that is not known.
        class_names: a name per logit; empty where they are not known.
        dispatch: MoE layer name to how its tokens are moved in the exported graph.
        precision: of the weights in the file: `"float32"`, which is as the model has them,
            `"float16"` or `"int8"`.
        experts_name: of the output `[b, k]` that tells the experts of each image, best first; of a
            model that routes whole images.
        superclasses: the expert of each class, where the router of such a model learned that.

    Example:

    >>> from keras_vmoe.serving import Metadata
    >>> metadata = Metadata("onnx", "images", (None, 8, 8, 1), "float32", "logits", (None, 2))
    >>> metadata.batch_size is None, Metadata.from_json(metadata.to_json()) == metadata
    (True, True)
    """

    format: str
    input_name: str
    input_shape: tuple[int | None, ...]
    input_dtype: str
    output_name: str
    output_shape: tuple[int | None, ...]
    value_range: tuple[float, float] | None = None
    class_names: tuple[str, ...] = ()
    dispatch: Mapping[str, str] = dataclasses.field(default_factory=dict)
    precision: str = "float32"
    experts_name: str | None = None
    superclasses: tuple[int, ...] = ()

    @property
    def batch_size(self) -> int | None:
        """Images of a batch; `None`: any number."""
        return self.input_shape[0]

    def to_json(self) -> str:
        """The facts as an object of JSON."""
        return json.dumps(dataclasses.asdict(self), indent=2, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Metadata:
        """The reverse of `to_json`. Fields that are not known, of a later version, are left out.

        Raises:
            ValueError: no JSON, no object, a field that is missing or of another kind.
        """
        facts = json.loads(text)
        require(isinstance(facts, dict), f"metadata must be an object. Received: {text[:80]!r}")
        found = {}
        for field in dataclasses.fields(cls):
            if field.name in facts:
                value = facts[field.name]
                found[field.name] = tuple(value) if isinstance(value, list) else value
        missing = [name for name in _required(cls) if name not in found]
        require(not missing, f"metadata must have the fields {', '.join(missing)}")
        for name, value in found.items():
            is_right, wanted = _CHECKS[name]
            require(is_right(value), f"{name} must be {wanted}. Received: {name}={value!r}")
        return cls(**found)


def _required(cls: type[Metadata]) -> list[str]:
    nothing = dataclasses.MISSING
    return [
        field.name
        for field in dataclasses.fields(cls)
        if field.default is nothing and field.default_factory is nothing
    ]


Run = Callable[[np.ndarray], Mapping[str, np.ndarray]]


class OpenFile(NamedTuple):
    """An exported file as the modules of the formats open it.

    Attributes:
        metadata: its text, if the file has some.
        load: makes a function of arrays of what was opened: from the input to outputs by name.
    """

    metadata: str | None
    load: Callable[[Metadata], Run]


def check_size(size: int) -> None:
    """Refuses metadata that is too large to be read.

    Raises:
        ValueError: more than `MAX_BYTES`.
    """
    require(
        size <= MAX_BYTES,
        f"metadata must have at most {MAX_BYTES:,} bytes. Received: {size:,} bytes",
    )
