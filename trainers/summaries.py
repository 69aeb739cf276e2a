"""What TensorBoard shows of a run besides its scalars: config, expert load, routing pictures."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import tensorflow as tf

from keras_vmoe.analysis import RoutingRecord


class Summaries:
    """Writes texts, histograms and pictures beside the scalars that Orbit writes.

    Args:
        folder: a folder of TensorBoard events; the scalars of evaluation lie there too.

    Example:
        >>> import tempfile
        >>> summaries = Summaries(Path(tempfile.mkdtemp()))
        >>> summaries.config("train.seed = 0", step=0)
        >>> summaries.close()
    """

    def __init__(self, folder: Path) -> None:
        self._writer = tf.summary.create_file_writer(str(folder))

    def config(self, text: str, step: int) -> None:
        """Shows a gin config as text.

        Args:
            text: the operative config.
            step: the step that it holds from.
        """
        # Indented by four, which Markdown shows as it is.
        indented = "\n".join("    " + line for line in text.splitlines())
        with self._writer.as_default(step=step):
            tf.summary.text("config.gin", indented)
        self._writer.flush()

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Shows numbers that Orbit does not know of.

        Args:
            values: tags to numbers.
            step: the step that they were measured at.
        """
        with self._writer.as_default(step=step):
            for name, value in values.items():
                tf.summary.scalar(name, value)
        self._writer.flush()

    def expert_load(self, records: Mapping[str, RoutingRecord], step: int) -> None:
        """Shows, for each MoE layer, how the kept choices spread over its experts.

        Args:
            records: from `analysis.routing_records`.
            step: the step that they were made at.
        """
        with self._writer.as_default(step=step):
            for name, record in records.items():
                # With as many buckets as experts, each bar is one expert.
                experts = tf.constant(record.expert[record.kept], tf.float32)
                tf.summary.histogram(f"expert_load/{name}", experts, buckets=record.num_experts)
                tf.summary.histogram(f"expert_shares/{name}", record.expert_shares)
        self._writer.flush()

    def picture(self, name: str, path: Path, step: int) -> None:
        """Shows a PNG.

        Args:
            name: its tag.
            path: the file.
            step: the step that it was made at.
        """
        image = tf.io.decode_png(path.read_bytes(), channels=3)
        with self._writer.as_default(step=step):
            tf.summary.image(name, image[None])
        self._writer.flush()

    def close(self) -> None:
        """Writes what is still in memory."""
        self._writer.close()


def begin_session(folder: Path, step: int) -> None:
    """Tells TensorBoard that a run begins or goes on, before anything else is written.

    At every beginning but a folder's first, TensorBoard leaves out what was written before of
    later steps.

    Args:
        folder: a folder of TensorBoard events.
        step: the one that the run begins with or goes on from.
    """
    start = tf.compat.v1.SessionLog(status=tf.compat.v1.SessionLog.START)
    with tf.Graph().as_default():  # this writer is of graphs; no other writes session logs
        writer = tf.compat.v1.summary.FileWriter(str(folder))
        writer.add_session_log(start, step + 1)
        writer.close()
