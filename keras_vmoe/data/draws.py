"""Random numbers that are functions of a seed and a place, and of nothing else."""

import tensorflow as tf

_PHILOX = 1
_NUMBERS_PER_COUNT = 4


def table_rows(seed: tf.Tensor, first: tf.Tensor, count: int, width: int) -> tf.Tensor:
    """Returns some rows of `tf.random.stateless_uniform((n, width), seed)` without making it.

    The generator counts: four numbers of the table belong to each count, so any row can be had
    by beginning to count where it lies. An epoch of a million images needs no table of their
    draws, and a resumed run none of those before it.

    Args:
        seed: int64 `[2]`.
        first: int64 scalar, the first row.
        count: how many rows.
        width: numbers of a row.

    Returns:
        float32 `[count, width]`, uniform in [0, 1).

    Example:
        >>> seed = tf.constant([1, 2], tf.int64)
        >>> table = tf.random.stateless_uniform((9, 5), seed)
        >>> rows = table_rows(seed, tf.constant(6, tf.int64), 2, 5)
        >>> bool(tf.reduce_all(rows == table[6:8]))
        True

    Reference:
        Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011, section 3 (Philox).
    """
    begin = tf.cast(first, tf.int64) * width
    skipped = begin // _NUMBERS_PER_COUNT
    # On a CPU, where input pipelines run, `stateless_uniform` chooses Philox too.
    key, counter = tf.raw_ops.StatelessRandomGetKeyCounter(seed=seed)
    counter += tf.cast(tf.stack([skipped, tf.zeros_like(skipped)]), tf.uint64)
    numbers = tf.raw_ops.StatelessRandomUniformV2(
        shape=[count * width + _NUMBERS_PER_COUNT], key=key, counter=counter, alg=_PHILOX
    )
    numbers = numbers[begin - skipped * _NUMBERS_PER_COUNT :][: count * width]
    return tf.reshape(numbers, (count, width))
