"""What TensorBoard shows of a run that went on from an earlier step."""

import time

import pytest
import tensorflow as tf

from keras_vmoe.trainers.summaries import begin_session


def session(folder, first_step, values):
    begin_session(folder, first_step)
    writer = tf.summary.create_file_writer(str(folder))
    with writer.as_default():
        for step, value in values.items():
            tf.summary.scalar("loss", value, step)
    writer.close()


def test_what_came_after_the_step_is_left_out(tmp_path):
    accumulators = pytest.importorskip(
        "tensorboard.backend.event_processing.plugin_event_accumulator"
    )
    session(tmp_path, 0, dict.fromkeys(range(1, 9), 1.0))
    time.sleep(1.1)  # the files' names tell their order by seconds
    session(tmp_path, 5, dict.fromkeys(range(6, 12), 2.0))
    found = accumulators.EventAccumulator(
        str(tmp_path), tensor_size_guidance={"scalars": 0}
    ).Reload()
    events = [(e.step, float(tf.make_ndarray(e.tensor_proto))) for e in found.Tensors("loss")]
    assert events == [(step, 1.0 if step <= 5 else 2.0) for step in range(1, 12)]
