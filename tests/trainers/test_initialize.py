"""`--init_from`: fine-tuning at another resolution, on other classes."""

import keras
import numpy as np
import pytest

from keras_vmoe import checkpoints, models
from keras_vmoe.trainers import initialize
from tests.trainers.tiny import arguments, train


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("trained")
    assert train(workdir, "train.steps=2") == 0
    return workdir


def values(path):
    model = keras.models.load_model(path, compile=False)
    return {v.path: keras.ops.convert_to_numpy(v) for v in model.weights}


def test_a_run_starts_from_the_weights_of_another(trained, tmp_path, capsys):
    # So low a learning rate leaves what was taken over, to the bit.
    words = ("train.steps=1", "train.image_size=24", "sgd.learning_rate=1e-30")
    assert (
        train(
            tmp_path / "tuned",
            *words,
            "train.optimizer=@sgd",
            f"train.init_from='{trained}'",
            "VMoE.capacity_factor=1.5",
        )
        == 0
    )
    printed = capsys.readouterr().out
    assert f"weights  from {trained}: " in printed
    assert "resized: position_embedding/embedding" in printed
    before, after = values(trained / "model.keras"), values(tmp_path / "tuned" / "model.keras")
    moved = [name for name in before if "head" not in name and "position" not in name]
    assert len(moved) > 10
    for name in moved:
        np.testing.assert_array_equal(after[name], before[name])
    position = next(name for name in after if "position" in name)
    assert after[position].shape != before[position].shape
    assert (tmp_path / "tuned" / "model.keras").exists()


def test_the_flag_is_the_binding(trained, tmp_path):
    from keras_vmoe.trainers import cli

    words = [*arguments(tmp_path, "train.steps=1")]
    assert cli.main([*words, f"--init_from={trained / 'model.keras'}"]) == 0
    assert f"train.init_from = '{trained / 'model.keras'}'" in (tmp_path / "config.gin").read_text()


def test_an_archive_of_the_reference_names(trained, tmp_path):
    source = keras.models.load_model(trained / "model.keras", compile=False).model
    arrays = {
        f"params/{name}": keras.ops.convert_to_numpy(variable)
        for name, variable in checkpoints.reference_variables(source).items()
    }
    np.savez(tmp_path / "weights.npz", **arrays)
    model = models.VMoE.from_config({**source.get_config(), "num_classes": 3})
    done = initialize.initialize(model, str(tmp_path / "weights.npz"), keep_head=False)
    assert set(done.fresh) == {"head/kernel", "head/bias"}
    kept = keras.ops.convert_to_numpy(model.get_layer("embedding").kernel)
    np.testing.assert_array_equal(kept, arrays["params/embedding/kernel"])


def test_a_checkpoint_in_the_format_of_the_released_ones(trained, tmp_path):
    source = keras.models.load_model(trained / "model.keras", compile=False).model
    checkpoints.save_vmoe(tmp_path / "released", checkpoints.reference_variables(source), 2)
    model = models.VMoE.from_config({**source.get_config(), "num_classes": 3})
    done = initialize.initialize(model, str(tmp_path / "released"), keep_head=False)
    assert set(done.fresh) == {"head/kernel", "head/bias"}
    kept = keras.ops.convert_to_numpy(model.get_layer("embedding").kernel)
    np.testing.assert_array_equal(kept, source.get_layer("embedding").kernel)
    (tmp_path / "released.data-00001-of-00002").unlink()
    with pytest.raises(ValueError, match="--init_from=.*data-00001-of-00002: this file"):
        initialize.initialize(model, str(tmp_path / "released"), keep_head=False)


def test_a_dense_run_is_upcycled(tmp_path, capsys):
    dense, sparse = tmp_path / "dense", tmp_path / "sparse"
    still = ("train.optimizer=@sgd", "sgd.learning_rate=1e-30")
    still += ("VMoE.head_kernel_initializer='glorot_uniform'",)
    assert train(dense, "train.steps=1", "VMoE.placement='none'", *still) == 0
    roomy = ("VMoE.renormalise_gates=True", "VMoE.capacity_factor=8.0", "train.keep_head=True")
    start = (f"train.init_from='{dense}'", "train.upcycle=True", "train.steps=1")
    assert train(sparse, *start, *roomy, *still) == 0
    assert "fresh: Encoder/encoderblock_0/Moe/Router/dense/kernel" in capsys.readouterr().out
    images = np.random.default_rng(0).integers(0, 255, (6, 8, 8, 1))
    both = [keras.models.load_model(d / "model.keras")(images) for d in (dense, sparse)]
    assert np.asarray(both[0]).std() > 0.1
    np.testing.assert_allclose(both[1], both[0], atol=1e-5)


def test_what_cannot_be_upcycled(trained, tmp_path, capsys):
    assert train(tmp_path / "a", "train.steps=1", "train.upcycle=True") == 1
    assert "train.upcycle=True needs the dense model" in capsys.readouterr().err
    words = (f"train.init_from='{trained}'", "train.upcycle=True")
    assert train(tmp_path / "a", "train.steps=1", *words) == 1
    assert "source must be dense" in capsys.readouterr().err


def test_the_head_can_be_kept(trained):
    source = keras.models.load_model(trained / "model.keras", compile=False).model
    model = models.VMoE.from_config(source.get_config())
    done = initialize.initialize(model, str(trained), keep_head=True)
    assert done.fresh == ()


@pytest.mark.parametrize(
    ("bindings", "words"),
    [
        (("train.init_from='no/such/place'",), "--init_from=no/such/place: there is no such"),
        (("VMoE.width=4", "train.init_from='{trained}'"), "wrong shape: "),
        (("VMoE.num_layers=2", "train.init_from='{trained}'"), "missing: encoder_block_1"),
    ],
)
def test_what_does_not_fit_is_told_and_leaves_no_run(trained, tmp_path, bindings, words, capsys):
    bindings = [binding.format(trained=trained) for binding in bindings]
    assert train(tmp_path / "workdir", "train.steps=1", *bindings) == 1
    error = capsys.readouterr().err
    assert words in error
    assert error.startswith("keras-vmoe: error: --init_from=")
    assert not (tmp_path / "workdir" / "model.keras").exists()
