"""Which blocks of an encoder are sparse."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from keras_vmoe.ops.validation import require


def moe_blocks(placement: str | Sequence[int], num_layers: int) -> tuple[int, ...]:
    """The 0-based ids of the sparse blocks.

    Args:
        placement: `"every_n"` (blocks n-1, 2n-1, ...), `"last_n"` (the last n of the odd blocks,
            V-MoE's word), `"final_n"` (the last n blocks, Soft MoE's), `"none"`, or block ids.
        num_layers: blocks in the encoder.

    Returns:
        Sorted block ids.

    Raises:
        ValueError: an unknown word, or blocks that the encoder does not have.

    Example:

    >>> from keras_vmoe.models.placement import moe_blocks
    >>> moe_blocks("every_2", 6), moe_blocks("last_2", 8), moe_blocks("final_2", 8)
    ((1, 3, 5), (5, 7), (6, 7))

    Reference: Riquelme et al. 2021, arXiv 2106.05974, section 3.1.
    """
    if isinstance(placement, str):
        return _from_word(placement, num_layers)
    blocks = tuple(sorted(placement)) if isinstance(placement, Iterable) else (-1,)
    require(
        all(isinstance(block, int) for block in blocks)
        and len(set(blocks)) == len(blocks)
        and all(0 <= b < num_layers for b in blocks),
        f"placement must name distinct blocks between 0 and {num_layers - 1}. "
        f"Received: placement={placement}",
    )
    return blocks


def _from_word(word: str, num_layers: int) -> tuple[int, ...]:
    if word == "none":
        return ()
    match = re.fullmatch(r"(every|last|final)_([1-9]\d*)", word)
    require(
        match is not None,
        "placement must be 'every_n', 'last_n', 'final_n', 'none' or a list of block ids. "
        f"Received: placement={word!r}",
    )
    kind, count = match.group(1), int(match.group(2))
    blocks = {
        "every": tuple(range(count - 1, num_layers, count)),
        "last": tuple(range(1, num_layers, 2))[-count:],
        "final": tuple(range(num_layers))[-count:],
    }[kind]
    require(
        len(blocks) == count if kind != "every" else len(blocks) > 0,
        f"placement asks for more blocks than the {num_layers} of the encoder have. "
        f"Received: placement={word!r}",
    )
    return blocks
