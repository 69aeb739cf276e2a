"""What the arrays of a model tell about it."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from keras_vmoe.checkpoints.errors import CheckpointError

Shapes = dict[str, tuple[int, ...]]
_BLOCK = re.compile(r"Encoder/encoderblock_(0|[1-9][0-9]{0,4})/")
_POSITIONS = "Encoder/posembed_input/pos_embedding"


def infer_arguments(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a `ViT` or `VMoE` that its arrays tell.

    Args:
        arrays: arrays, or anything with a shape, by the reference's names.

    Returns:
        Arguments of `VMoE`, without those of its MoE layers where no block is sparse, and with
        `image_size` where there are learned positions of a square image. `num_members` is there
        where the routers are of an ensemble. What arrays do not tell is left out: the number of
        choices, capacity, priority, groups; of models without a class token the kind of pooling
        besides attention; of those without learned positions the kind of positions.

    Raises:
        CheckpointError: arrays that are not a ViT's or V-MoE's; it says what is missing or
            does not fit.

    Example:

    >>> import numpy as np
    >>> from keras_vmoe import checkpoints, models
    >>> model = models.from_variant("vmoe_s32", num_classes=10, num_experts=4, num_layers=2)
    >>> found = checkpoints.infer_arguments(checkpoints.reference_variables(model))
    >>> found["num_layers"], found["width"], found["placement"], found["num_experts"]
    (2, 512, (1,), 4)
    """
    shapes = {name: tuple(np.shape(array)) for name, array in arrays.items()}
    embedding = _shape(shapes, "embedding/kernel", 4)
    patch, channels, width = embedding[:2], embedding[2], embedding[3]
    blocks = _blocks(shapes)
    heads = _shape(shapes, f"{blocks[0]}SelfAttention/query/kernel", 3)[1]
    found = {
        "patch_size": patch[0] if patch[0] == patch[1] else patch,
        "channels": channels,
        "width": width,
        "num_layers": len(blocks),
        "num_heads": heads,
        "qk_norm": f"{blocks[0]}SelfAttention/query_ln/scale" in shapes,
        "pooling": _pooling(shapes),
        "representation_size": _optional(shapes, "pre_logits/kernel"),
        "num_classes": _optional(shapes, "head/kernel"),
        **_image_size(shapes, patch),
    }
    hidden = [f"{block}Moe/Mlp/Dense_0/kernel" for block in blocks]
    sparse = tuple(i for i, name in enumerate(hidden) if name in shapes)
    if sparse:
        experts, _, mlp_dim = _shape(shapes, hidden[sparse[0]], 3)
        router = _router(shapes, f"{blocks[sparse[0]]}Moe/Router/")
        found |= {"mlp_dim": mlp_dim, "placement": sparse, "num_experts": experts, **router}
    else:
        found["mlp_dim"] = _shape(shapes, f"{blocks[0]}Mlp/Dense_0/kernel", 2)[1]
    _require_kernels(shapes, found)
    return found


def _require_kernels(shapes: Shapes, found: dict[str, Any]) -> None:
    """The large arrays have the shapes that the arguments give them.

    So a model that is built of the arguments is as large as its arrays, and no larger: a few small
    arrays cannot ask for more memory than their file has.
    """
    problems = []
    for name, wanted in _kernels(found).items():
        if name not in shapes:
            problems.append(f"missing: {name}")
        elif shapes[name] != wanted:
            problems.append(f"{name} is {shapes[name]}, beside the others it must be {wanted}")
    if problems:
        raise CheckpointError(
            "the arrays do not fit one another:\n  " + "\n  ".join(sorted(problems))
        )


def _kernels(found: dict[str, Any]) -> Shapes:
    """The shapes of a model's kernels by name, but for patches, positions and head."""
    d, h, m = found["width"], found["num_heads"], found["mlp_dim"]
    head = d // h
    e, members = found.get("num_experts"), found.get("num_members")
    kernels: Shapes = {}
    for i in range(found["num_layers"]):
        block = f"Encoder/encoderblock_{i}/"
        kernels |= dict.fromkeys(
            (f"{block}SelfAttention/{name}/kernel" for name in ("query", "key", "value")),
            (d, h, head),
        )
        kernels[f"{block}SelfAttention/out/kernel"] = (h, head, d)
        if i not in found.get("placement", ()):
            kernels |= {f"{block}Mlp/Dense_0/kernel": (d, m), f"{block}Mlp/Dense_1/kernel": (m, d)}
            continue
        kernels[f"{block}Moe/Mlp/Dense_0/kernel"] = (e, d, m)
        kernels[f"{block}Moe/Mlp/Dense_1/kernel"] = (e, m, d)
        if found.get("router") == "soft":
            kernels[f"{block}Moe/Router/mu"] = (d, e, found["num_slots"])
        else:
            router = (d, e) if members is None else (d, members, e // members)
            kernels[f"{block}Moe/Router/dense/kernel"] = router
    if found["pooling"] == "map":
        kernels |= {"MapHead/Mlp/Dense_0/kernel": (d, m), "MapHead/Mlp/Dense_1/kernel": (m, d)}
    return kernels


def _shape(shapes: Shapes, name: str, rank: int) -> tuple[int, ...]:
    if name not in shapes:
        raise CheckpointError(
            f"these are not the arrays of a ViT or V-MoE: {name!r} is missing. There are "
            f"{len(shapes)}, such as {', '.join(map(repr, sorted(shapes)[:3]))}"
        )
    if len(shapes[name]) != rank or 0 in shapes[name]:
        raise CheckpointError(f"{name!r} must have {rank} axes. It has the shape {shapes[name]}")
    return shapes[name]


def _blocks(shapes: Shapes) -> list[str]:
    """The beginnings of the blocks' names, in order."""
    numbers = sorted({int(match[1]) for name in shapes if (match := _BLOCK.match(name))})
    if not numbers or numbers != list(range(len(numbers))):
        raise CheckpointError(
            "an encoder has blocks encoderblock_0, encoderblock_1, ... without a gap. "
            f"There are {', '.join(map(str, numbers)) or 'none'}"
        )
    return [f"Encoder/encoderblock_{number}/" for number in numbers]


def _pooling(shapes: Shapes) -> str:
    if any(name.startswith("MapHead/") for name in shapes):
        return "map"
    return "token" if "cls" in shapes else "gap"


def _optional(shapes: Shapes, name: str) -> int | None:
    return _shape(shapes, name, 2)[1] if name in shapes else None


def _image_size(shapes: Shapes, patch: tuple[int, ...]) -> dict[str, Any]:
    if _POSITIONS not in shapes:
        return {}
    tokens = _shape(shapes, _POSITIONS, 3)[1] - ("cls" in shapes)
    side = math.isqrt(tokens)
    if side * side != tokens:
        return {"position_embedding": "learned"}
    size = (side * patch[0], side * patch[1])
    return {
        "position_embedding": "learned",
        "image_size": size[0] if size[0] == size[1] else size,
    }


def _router(shapes: Shapes, prefix: str) -> dict[str, Any]:
    if f"{prefix}mu" in shapes:
        return {"router": "soft", "num_slots": _shape(shapes, f"{prefix}mu", 3)[2]}
    kernel = f"{prefix}dense/kernel"
    if len(shapes.get(kernel, ())) == 3:
        return {"num_members": _shape(shapes, kernel, 3)[1]}
    _shape(shapes, kernel, 2)
    return {}
