"""Super-classes: groups of classes that a router learns to tell apart.

Axis letters: b images, e experts, one for each super-class.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from keras import ops

from keras_vmoe.ops.classification import classification_loss
from keras_vmoe.ops.validation import require, require_rank


def require_superclasses(superclasses: Sequence[int], num_classes: int, num_experts: int) -> None:
    """Raises a `ValueError` unless each class has an expert, and each expert a class.

    Args:
        superclasses: the expert of each class.
        num_classes: classes.
        num_experts: experts (e).
    """
    ids = np.asarray(superclasses)
    require(
        ids.ndim == 1 and ids.dtype.kind in "iu",
        "superclasses must be a sequence of ints, the number of an expert for each class (of a "
        f"keras_vmoe.superclass.Superclasses its ids). Received: superclasses={superclasses!r:.80}",
    )
    require(
        len(ids) == num_classes,
        f"superclasses must hold an expert for each of the {num_classes} classes. "
        f"Received: {len(ids)} of them",
    )
    bad = sorted({int(i) for i in ids if not 0 <= i < num_experts})
    require(
        not bad,
        f"superclasses must be numbers from 0 to {num_experts - 1}, as there are "
        f"num_experts={num_experts}. Received: {', '.join(map(str, bad))}",
    )
    idle = sorted(set(range(num_experts)) - {int(i) for i in ids})
    require(
        not idle,
        f"superclasses must give each of num_experts={num_experts} experts a class. Received: no "
        f"class for {', '.join(map(str, idle))}; set num_experts to the number of super-classes",
    )


def superclass_targets(labels: Any, superclasses: Sequence[int], num_experts: int) -> Any:
    """The super-classes of images, as probabilities.

    Args:
        labels: class ids `[b]`, or probabilities `[b, classes]`, such as Mixup and CutMix make:
            those of the classes of a super-class are summed up.
        superclasses: the expert of each class.
        num_experts: experts (e).

    Returns:
        `[b, e]`, float32.

    Example:

    >>> import numpy as np
    >>> from keras_vmoe import ops
    >>> mixed = np.array([[0.25, 0.0, 0.75]])
    >>> np.array(ops.superclass_targets(mixed, [0, 1, 1], 2)).tolist()
    [[0.25, 0.75]]

    Reference: Daxberger et al. 2023, arXiv 2309.04354, section 3.
    """
    labels = ops.convert_to_tensor(labels)
    ids = np.asarray(superclasses, "int32")
    if len(labels.shape) == 1:
        return ops.one_hot(ops.take(ids, ops.cast(labels, "int32"), axis=0), num_experts)
    require(
        len(labels.shape) == 2 and labels.shape[-1] == len(ids),
        f"labels must be class ids [images] or probabilities [images, {len(ids)}]. "
        f"Received: labels of shape {tuple(labels.shape)}",
    )
    return ops.matmul(ops.cast(labels, "float32"), np.eye(num_experts, dtype="float32")[ids])


def superclass_loss(labels: Any, router_logits: Any, superclasses: Sequence[int]) -> Any:
    """The cross entropy between the router's gates and the super-class of each image.

    Args:
        labels: class ids `[b]`, or probabilities `[b, classes]`.
        router_logits: `[b, e]`.
        superclasses: the expert of each class.

    Returns:
        `[b]`, float32.

    Example:

    >>> import numpy as np
    >>> from keras_vmoe import ops
    >>> round(float(ops.superclass_loss(np.array([2]), np.zeros((1, 2)), [0, 1, 1])[0]), 4)
    0.6931

    Reference: Daxberger et al. 2023, arXiv 2309.04354, section 3, L_g.
    """
    router_logits = ops.cast(router_logits, "float32")
    require_rank("router_logits", router_logits, 2, "[images, experts]")
    targets = superclass_targets(labels, superclasses, router_logits.shape[-1])
    return classification_loss(targets, router_logits)


def superclass_hits(labels: Any, router_logits: Any, superclasses: Sequence[int]) -> Any:
    """1 where the router's first choice is the super-class of an image, else 0.

    Args:
        labels: class ids `[b]`, or probabilities, of which the likeliest super-class counts.
        router_logits: `[b, e]`.
        superclasses: the expert of each class.

    Returns:
        `[b]`, float32.

    Example:

    >>> import numpy as np
    >>> from keras_vmoe import ops
    >>> np.array(ops.superclass_hits(np.array([2, 0]), np.eye(2), [0, 1, 1])).tolist()
    [0.0, 0.0]
    """
    router_logits = ops.convert_to_tensor(router_logits)
    targets = superclass_targets(labels, superclasses, router_logits.shape[-1])
    hits = ops.equal(ops.argmax(router_logits, axis=-1), ops.argmax(targets, axis=-1))
    return ops.cast(hits, "float32")
