"""Checkpoints: which are kept, which one is taken up again, what is refused."""

import os
import shutil
from types import SimpleNamespace

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_vmoe.trainers.checkpointing import Checkpoints, NotFiniteError


def make_loop(units=3):
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(units)])
    optimizer = keras.optimizers.AdamW(0.1)
    optimizer.build(model.trainable_variables)
    step = tf.Variable(0, dtype=tf.int64)
    return SimpleNamespace(model=model, optimizer=optimizer, global_step=step, metrics=[])


def set_step(loop, step):
    loop.global_step.assign(step)
    loop.model.layers[-1].kernel.assign(np.full((2, 3), float(step)))


def kernel(loop):
    return float(loop.model.layers[-1].kernel.numpy()[0, 0])


@pytest.fixture
def saved(tmp_path):
    """A folder with checkpoints of steps 2, 4 and 6."""
    loop = make_loop()
    checkpoints = Checkpoints(loop, tmp_path, keep=3)
    for step in (2, 4, 6):
        set_step(loop, step)
        checkpoints.save()
    return tmp_path


def halve(path):
    os.truncate(path, path.stat().st_size // 2)


def restore(folder, **options):
    warnings = []
    loop = make_loop(**options)
    checkpoints = Checkpoints(loop, folder, keep=3, warn=warnings.append)
    return checkpoints.restore(), loop, checkpoints, warnings


def test_the_newest_is_restored(saved):
    step, loop, checkpoints, warnings = restore(saved)
    assert (step, kernel(loop), warnings) == (6, 6.0, [])
    assert checkpoints.latest.endswith("ckpt-6")


@pytest.mark.parametrize("name", ["ckpt-6.data-00000-of-00001", "ckpt-6.index"])
def test_a_damaged_newest_falls_back_to_the_one_before(saved, name):
    halve(saved / name)
    step, loop, checkpoints, warnings = restore(saved)
    assert (step, kernel(loop)) == (4, 4.0)
    assert len(warnings) == 1
    assert "ckpt-6 is damaged" in warnings[0]
    assert "step 4" in warnings[0]
    # The step of the damaged one is saved anew when the run comes there.
    set_step(loop, 6)
    checkpoints.save()
    assert restore(saved)[0] == 6


def test_a_missing_data_file_is_damage_too(saved):
    (saved / "ckpt-6.data-00000-of-00001").unlink()
    assert restore(saved)[0] == 4


def test_the_list_of_checkpoints_may_be_lost(saved):
    (saved / "checkpoint").unlink()
    assert restore(saved)[0] == 6


def test_nothing_but_damage_is_an_error_that_names_all(saved):
    for step in (2, 4, 6):
        halve(saved / f"ckpt-{step}.index")
    with pytest.raises(ValueError, match=r"cannot resume: .*ckpt-6.*ckpt-4.*ckpt-2.*--workdir"):
        restore(saved)


def test_another_model_is_no_damage(saved):
    with pytest.raises(ValueError, match=r"cannot resume from .*ckpt-6.*another model"):
        restore(saved, units=5)


def test_the_newest_and_the_best_are_kept(tmp_path):
    loop = make_loop()
    checkpoints = Checkpoints(loop, tmp_path, keep=2)
    assert checkpoints.best_step is None
    for step in (1, 2, 3, 4):
        set_step(loop, step)
        checkpoints.save()
        if step in (1, 2):
            checkpoints.save_best()
    assert checkpoints.best_step == 2
    names = {path.name for path in tmp_path.glob("*.index")}
    assert names == {"ckpt-3.index", "ckpt-4.index"}
    assert [path.name for path in tmp_path.glob("best/*.index")] == ["ckpt-2.index"]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_not_saved(saved, bad):
    _, loop, checkpoints, _ = restore(saved)
    set_step(loop, 8)
    loop.model.layers[-1].bias.assign([0.0, bad, 0.0])
    with pytest.raises(NotFiniteError, match="bias"):
        checkpoints.save()
    assert not list(saved.glob("ckpt-8*"))
    assert checkpoints.latest.endswith("ckpt-6")


def test_slots_that_are_not_finite_are_not_saved(saved):
    _, loop, checkpoints, _ = restore(saved)
    set_step(loop, 8)
    loop.optimizer.variables[-1].assign(np.full(loop.optimizer.variables[-1].shape, np.nan))
    with pytest.raises(NotFiniteError):
        checkpoints.save()


def test_a_step_is_saved_once(saved):
    _, _, checkpoints, _ = restore(saved)
    before = (saved / "ckpt-6.index").stat().st_mtime_ns
    checkpoints.save()
    assert (saved / "ckpt-6.index").stat().st_mtime_ns == before


def test_a_folder_that_vanishes_is_made_again(tmp_path):
    loop, warnings = make_loop(), []
    folder = tmp_path / "run" / "checkpoints"
    checkpoints = Checkpoints(loop, folder, keep=2, warn=warnings.append)
    for step in (1, 2, 3):
        set_step(loop, step)
        checkpoints.save()
        checkpoints.save_best()
    assert warnings == []
    shutil.rmtree(tmp_path / "run")
    assert checkpoints.latest is None
    assert checkpoints.best_step is None  # so that the next one becomes the best
    checkpoints.save()  # of the same step, which lay there
    assert warnings == [f"{folder} has vanished; making it again, from step 3 on"]
    checkpoints.save_best()
    for step in (4, 5):
        set_step(loop, step)
        checkpoints.save()
    assert len(warnings) == 2  # the best has a folder of its own
    assert restore(folder)[0] == 5
    assert checkpoints.best_step == 3
