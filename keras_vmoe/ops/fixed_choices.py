"""Choices of experts that nothing is learned for: for benchmarks, tests and comparisons.

`assign_slots` makes plans of them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from keras import ops

from keras_vmoe.ops.validation import require, require_rank


def uniform_choices(
    num_groups: int, num_tokens: int, num_experts: int, num_selected: int = 1
) -> Any:
    """Expert ids `[g, s, k]` that load every expert alike: round robin over the tokens.

    For benchmarks and as the yardstick that a learned router has to beat.

    Example:

    >>> import numpy as np
    >>> from keras_vmoe import ops
    >>> np.array(ops.uniform_choices(1, 4, num_experts=2))[0, :, 0].tolist()
    [0, 1, 0, 1]
    """
    require(
        num_selected <= num_experts,
        f"num_selected must be at most num_experts={num_experts}. "
        f"Received: num_selected={num_selected}",
    )
    token = ops.arange(num_tokens, dtype="int32") * num_selected
    choice = ops.expand_dims(token, -1) + ops.arange(num_selected, dtype="int32")
    return ops.tile(ops.expand_dims(choice % num_experts, 0), (num_groups, 1, 1))


def hash_choices(ids: Any, num_experts: int, num_selected: int = 1, seed: int = 0) -> Any:
    """Expert ids `[g, s, k]` from a fixed hash of integer ids `[g, s]` (token or position ids).

    The k experts of a token are distinct.

    Example:

    >>> import numpy as np
    >>> from keras_vmoe import ops
    >>> choice = np.array(ops.hash_choices(np.arange(64)[None], num_experts=8, num_selected=2))
    >>> choice.shape, bool((choice[..., 0] != choice[..., 1]).all())
    ((1, 64, 2), True)

    Reference: Roller et al. 2021, arXiv 2106.04426 (Hash Layers), section 3.
    """
    require_rank("ids", ids, 2, "[groups, tokens]")
    require(
        num_selected <= num_experts,
        f"num_selected must be at most num_experts={num_experts}. "
        f"Received: num_selected={num_selected}",
    )
    # A fixed random table of a prime length: well mixed, and the same on every backend.
    length = 65_521
    first = np.random.default_rng(seed).integers(0, num_experts, length).astype("int32")
    bucket = ops.cast(ids, "int32") % length
    start = ops.take(ops.convert_to_tensor(first), bucket)
    steps = ops.arange(num_selected, dtype="int32")
    return (ops.expand_dims(start, -1) + steps) % num_experts
