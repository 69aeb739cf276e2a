"""Which examples come when: epochs, shuffling, repeats, resuming, the shares of several hosts.

Everything here is a function of (seed, epoch, place in the epoch) alone.
"""

import math
from dataclasses import dataclass

import numpy as np
import tensorflow as tf

from keras_vmoe.data.draws import table_rows
from keras_vmoe.data.source import Split, StreamSplit

# Encoded examples that a stream is shuffled within: this many, or this many times a batch.
_SHUFFLE_WINDOW = 4096
_WINDOW_BATCHES = 4
# Parts of a stream that are read in turns, and how many examples come from one in its turn.
_CYCLE_LENGTH = _BLOCK_LENGTH = 16
# Streams of random numbers of one epoch.
_ORDER, _DRAWS = 0, 1

Example = dict[str, tf.Tensor]


@dataclass(frozen=True)
class Schedule:
    """What the order of the examples depends on.

    Args:
        batch_size: of all hosts together.
        seed: of order and draws.
        start_step: the batch that training begins with.
        repeats: how many times each example comes in a batch.
        num_shards: number of hosts.
        shard_index: which host this is, from 0.
        num_draws: uniform numbers that each example gets.

    Raises:
        ValueError: if an argument is out of range, or hosts cannot share the batch evenly.
    """

    batch_size: int
    seed: int = 0
    start_step: int = 0
    repeats: int = 1
    num_shards: int = 1
    shard_index: int = 0
    num_draws: int = 0

    def __post_init__(self):
        for name, least in (("batch_size", 1), ("start_step", 0), ("repeats", 1)):
            value = getattr(self, name)
            if not isinstance(value, int | np.integer) or value < least:
                raise ValueError(f"{name}={value!r}: expected a whole number of {least} or more.")
        if self.num_shards < 1 or not 0 <= self.shard_index < self.num_shards:
            raise ValueError(
                f"shard_index={self.shard_index!r} of num_shards={self.num_shards!r}: expected "
                "0 <= shard_index < num_shards."
            )
        if self.batch_size % self.num_shards:
            raise ValueError(
                f"batch_size={self.batch_size} is that of all hosts: it does not divide by "
                f"num_shards={self.num_shards}."
            )

    @property
    def host_batch_size(self) -> int:
        """The part of a batch that this host gets."""
        return self.batch_size // self.num_shards

    @property
    def first_in_batch(self) -> int:
        """Where in a batch this host's part begins."""
        return self.shard_index * self.host_batch_size


def training_batches(split: Split, schedule: Schedule) -> tf.data.Dataset:
    """Gives the batches of a split of arrays or files, epoch after epoch without end.

    Args:
        split: arrays or files.
        schedule: the order.

    Returns:
        `{"index": int32 [b], "draws": float32 [b, num_draws]}`, b as this host has it; no draws
        where there are none.
    """
    size, steps = schedule.batch_size, split.steps_per_epoch(schedule.batch_size)
    distinct = math.ceil(size / schedule.repeats)
    begin, count = schedule.first_in_batch, schedule.host_batch_size
    columns = (np.arange(size) % distinct)[begin : begin + count]
    first_epoch, first_step = divmod(schedule.start_step, steps)

    def one_epoch(epoch: tf.Tensor) -> tf.data.Dataset:
        order_seed, draws_seed = _seeds(schedule.seed, epoch)
        order = tf.random.experimental.stateless_shuffle(tf.range(split.num_examples), order_seed)
        order = tf.reshape(order[: steps * distinct], (steps, distinct))

        def one_batch(step: tf.Tensor) -> Example:
            draws = table_rows(draws_seed, step * size + begin, count, schedule.num_draws)
            return {"index": tf.gather(order[step], columns)} | _if_any(draws)

        begin_step = tf.where(epoch == first_epoch, tf.constant(first_step, tf.int64), 0)
        return tf.data.Dataset.range(begin_step, steps).map(one_batch)

    return _epochs(first_epoch, one_epoch)


def training_stream(
    split: StreamSplit, schedule: Schedule, mine: StreamSplit | None = None
) -> tf.data.Dataset:
    """Gives the examples of a stream, epoch after epoch without end.

    Each epoch reads the parts of the stream in an order of its own, several in turns, and shuffles
    what comes within windows of several batches, whose borders lie elsewhere in each epoch. With
    repeats an epoch takes a part of the stream, and the next epoch the part after it. A host whose
    part of the stream is shorter than an epoch begins it again within the epoch.

    Args:
        split: the whole stream, of all hosts.
        schedule: the order.
        mine: what this host reads of it, where that is held in memory.

    Returns:
        `{"image": encoded bytes, "label": int, "position": int64, "draws": float32 [num_draws]}`;
        no draws where there are none.
    """
    steps, count = split.steps_per_epoch(schedule.batch_size), schedule.host_batch_size
    distinct = math.ceil(count / schedule.repeats)
    columns = np.arange(count) % distinct
    mine = mine or split.shard(schedule.num_shards, schedule.shard_index)
    first_epoch, first_step = divmod(schedule.start_step, steps)

    def repeat(batch: Example) -> Example:
        return {name: tf.gather(value, columns) for name, value in batch.items()}

    def one_epoch(epoch: tf.Tensor) -> tf.data.Dataset:
        order_seed, _ = _seeds(schedule.seed, epoch // schedule.repeats)
        _, draws_seed = _seeds(schedule.seed, epoch)
        window = max(_SHUFFLE_WINDOW, _WINDOW_BATCHES * distinct)
        examples = _shuffled(mine, order_seed, window).repeat()
        begin = (epoch % schedule.repeats) * (steps * distinct)
        examples = examples.skip(begin).take(steps * distinct)
        if schedule.repeats > 1:
            examples = examples.batch(distinct, drop_remainder=True).map(repeat).unbatch()

        def add_draws(place: tf.Tensor, example: Example) -> Example:
            row = place // count * schedule.batch_size + schedule.first_in_batch + place % count
            return example | _if_any(table_rows(draws_seed, row, 1, schedule.num_draws)[0])

        done = tf.where(epoch == first_epoch, tf.constant(first_step * count, tf.int64), 0)
        return examples.enumerate().skip(done).map(add_draws)

    return _epochs(first_epoch, one_epoch)


def evaluation(
    split: Split, schedule: Schedule, mine: StreamSplit | None = None
) -> tuple[tf.data.Dataset, int]:
    """Gives each example once, in order; each to one host.

    Args:
        split: any split; streams as a whole, of all hosts.
        schedule: who gets what.
        mine: what this host reads of a stream, where that is held in memory.

    Returns:
        The examples of this host, `{"index"}` or `{"image", "label", "position"}`; and how many
        are missing to as many full batches as every host has.
    """
    count = schedule.host_batch_size
    if isinstance(split, StreamSplit):
        hosts = range(schedule.num_shards)
        parts = [split.shard(schedule.num_shards, host) for host in hosts]
        steps = math.ceil(max(part.num_examples for part in parts) / count)
        mine = mine or parts[schedule.shard_index]
        return _numbered(mine), steps * count - mine.num_examples
    steps = math.ceil(split.num_examples / schedule.batch_size)
    places = np.arange(steps * schedule.batch_size).reshape(steps, schedule.num_shards, count)
    places = places[:, schedule.shard_index].ravel()
    real = places[places < split.num_examples]
    examples = tf.data.Dataset.from_tensor_slices({"index": real.astype(np.int32)})
    return examples, len(places) - len(real)


def _if_any(draws: tf.Tensor) -> Example:
    # `Dataset.unbatch` crashes on tensors without values.
    return {"draws": draws} if draws.shape[-1] else {}


def _epochs(first: int, one_epoch) -> tf.data.Dataset:
    return tf.data.Dataset.range(first, tf.int64.max).flat_map(one_epoch)


def _seeds(seed: int, epoch: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns the seeds of order and draws in one epoch."""
    pair = tf.stack([tf.constant(seed, tf.int64), epoch])
    return tf.random.fold_in(pair, _ORDER), tf.random.fold_in(pair, _DRAWS)


def _numbered(split: StreamSplit, parts: tf.Tensor | None = None) -> tf.data.Dataset:
    """Adds to each example its place in the stream.

    Args:
        split: the stream.
        parts: int64, the parts in the order in which they are read; None for all in their order.
    """
    begins = np.cumsum((0, *split.sizes), dtype=np.int64)

    def open_part(part: tf.Tensor) -> tf.data.Dataset:
        examples = split.open(part).enumerate(tf.constant(begins)[part])
        return examples.map(lambda place, example: example | {"position": place})

    if len(split.sizes) == 1:
        return open_part(tf.constant(0, tf.int64))
    if parts is None:
        parts = tf.range(len(split.sizes), dtype=tf.int64)
    return tf.data.Dataset.from_tensor_slices(parts).interleave(
        open_part,
        cycle_length=_CYCLE_LENGTH,
        block_length=_BLOCK_LENGTH,
        num_parallel_calls=tf.data.AUTOTUNE,
        deterministic=True,
    )


def _shuffled(split: StreamSplit, order_seed: tf.Tensor, window: int) -> tf.data.Dataset:
    """Shuffles the parts, and the examples within windows.

    `Dataset.shuffle` would mix over the windows' borders, but its order depends on TensorFlow's
    global seed too.
    """
    parts_seed, border_seed, windows_seed = tf.unstack(tf.random.split(order_seed, 3))

    def shuffle(number: tf.Tensor, examples: Example) -> Example:
        size = tf.shape(examples["label"])[0]
        seed = tf.random.fold_in(windows_seed, number)
        order = tf.random.experimental.stateless_shuffle(tf.range(size), seed)
        return {name: tf.gather(value, order) for name, value in examples.items()}

    numbers = tf.range(len(split.sizes), dtype=tf.int64)
    numbers = tf.random.experimental.stateless_shuffle(numbers, parts_seed)
    windows = _numbered(split, numbers).batch(window)
    if split.num_examples > window:
        # The first window is shorter. `skip` reads it a second time; a dataset of its own, because
        # tf.data's optimizer breaks on one that is used twice.
        first = tf.random.stateless_uniform((), border_seed, 1, window + 1, tf.int64)
        rest = _numbered(split, numbers).skip(first).batch(window)
        windows = _numbered(split, numbers).take(first).batch(window).concatenate(rest)
    return windows.enumerate().map(shuffle).prefetch(1).unbatch()
