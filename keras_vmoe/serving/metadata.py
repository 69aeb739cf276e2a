"""What an exported file says of itself: its input, its classes, how its tokens are moved."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

KEY = "keras_vmoe"
FILE_NAME = f"{KEY}.json"


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

    @property
    def batch_size(self) -> int | None:
        """Images of a batch; `None`: any number."""
        return self.input_shape[0]

    def to_json(self) -> str:
        """The facts as an object of JSON."""
        return json.dumps(dataclasses.asdict(self), indent=2, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Metadata:
        """The reverse of `to_json`."""
        facts: dict[str, Any] = json.loads(text)
        lists = {name: tuple(value) for name, value in facts.items() if isinstance(value, list)}
        return cls(**{**facts, **lists})
