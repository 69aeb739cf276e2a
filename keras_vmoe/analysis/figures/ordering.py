"""The order in which experts stand in a figure."""

from __future__ import annotations

import numpy as np


def expert_order(values: np.ndarray) -> np.ndarray:
    """Orders experts so that those which prefer the same rows stand together.

    An expert stands by the row where its value is largest; of several with the same row, the one
    with the larger value there comes first, then the one with the lower number. Equal tables give
    equal orders.

    Args:
        values: `[rows, e]`; a row of NaN, such as a class without images, counts as 0.

    Returns:
        `[e]` expert numbers.

    Example:
        >>> expert_order(np.array([[0.1, 0.2, 0.9], [0.8, 0.1, 0.1], [0.1, 0.7, 0.0]])).tolist()
        [2, 0, 1]
    """
    values = np.nan_to_num(values)
    favourite = values.argmax(0)
    height = values.max(0)
    return np.lexsort((np.arange(values.shape[1]), -height, favourite))
