"""Images that cannot be decoded: counted, told of, left out up to a limit."""

import re
import threading
import warnings

import tensorflow as tf

# What TensorFlow says of the place in its graph, in some messages.
_NODE = re.compile(r"\{\{function_node \S*\}\}|__wrapped__\S*\}\}")

# What stands in the place of an image that lacks a caption: to pairs it is of no use either.
NO_CAPTION = b"no caption"


class CorruptImages:
    """The images of a source that could not be decoded so far, each once.

    Args:
        limit: how many may be left out.

    Raises:
        ValueError: if `limit` is not a whole number of 0 or more.

    Example:
        >>> corrupt = CorruptImages(limit=2)
        >>> corrupt.count, corrupt.found
        (0, ())
    """

    def __init__(self, limit: int = 0):
        if isinstance(limit, bool) or limit != int(limit) or limit < 0:
            raise ValueError(f"max_corrupt={limit!r}: expected a whole number of 0 or more.")
        self.limit = int(limit)
        self._reasons: dict[str, str] = {}
        # Images are decoded in several threads.
        self._lock = threading.Lock()

    @property
    def count(self) -> int:
        """How many were found."""
        return len(self._reasons)

    @property
    def found(self) -> tuple[str, ...]:
        """The place of each and the reason, in the order in which they were found."""
        with self._lock:
            return tuple(f"{place} ({reason})" for place, reason in self._reasons.items())

    def add(self, place: str, reason: str) -> None:
        """Counts an image; the same place counts once. Warns of the first."""
        with self._lock:
            is_first = not self._reasons
            self._reasons.setdefault(place, reason)
        if is_first and self.limit:
            warnings.warn(
                f"an image cannot be decoded and is left out: {place} ({reason}); up to "
                f"max_corrupt={self.limit} are left out without a word, then there is an error",
                stacklevel=2,
            )

    def check(self, of: str = "images") -> None:
        """Raises an error if there are more than may be left out.

        Args:
            of: what they are images of, for the message.

        Raises:
            ValueError: names the number and the first.
        """
        if self.count > self.limit:
            allowed = f" where max_corrupt={self.limit} may be left out" if self.limit else ""
            raise ValueError(
                f"{self.count} {of} cannot be decoded{allowed}, the first is {self.found[0]}: "
                "mend or remove them, or raise max_corrupt."
            )

    def decode(
        self, content: tf.Tensor, channels: int, place: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Decodes an image within an input pipeline, where nothing else catches an error.

        Args:
            content: string scalar, the bytes of a file.
            channels: that the image gets.
            place: string scalar that tells images apart.

        Returns:
            The image, uint8 `[height, width, channels]`, one black pixel if it cannot be decoded;
            and whether it could be, bool scalar.
        """

        def decode_or_count(content: bytes, place: bytes):
            has_caption = content != NO_CAPTION
            image = try_decode(content, channels) if has_caption else "it has no caption"
            if not isinstance(image, str):
                return image.numpy(), True
            self.add(place.decode(), image)
            self.check()
            return tf.zeros((1, 1, channels), tf.uint8).numpy(), False

        image, is_whole = tf.numpy_function(
            decode_or_count, [content, place], (tf.uint8, tf.bool), stateful=True
        )
        return tf.ensure_shape(image, (None, None, channels)), tf.ensure_shape(is_whole, ())


def decode(content: tf.Tensor, channels: int) -> tf.Tensor:
    """Decodes the bytes of one PNG, JPEG, BMP or GIF into uint8 `[height, width, channels]`."""
    return tf.io.decode_image(content, channels=channels, expand_animations=False)


def try_decode(content: bytes | tf.Tensor, channels: int) -> tf.Tensor | str:
    """Returns the image, or the reason why there is none, in one line."""
    try:
        with tf.device("CPU:0"):
            return decode(content, channels)
    except tf.errors.OpError as error:
        return one_line(error)


def one_line(error: tf.errors.OpError) -> str:
    """Returns what went wrong, without where in TensorFlow it did."""
    return _NODE.sub("", error.message.split("\n")[0]).split(" [Op:")[0].strip()
