"""Exported models that route whole images: their experts, and weights of fewer bits."""

import dataclasses

import keras
import numpy as np
import pytest

from keras_vmoe import models, serving
from keras_vmoe.serving import litert_file, routing

SUPERCLASSES = [0, 1, 2, 3, 0]


def mobile(**overrides):
    """Matrices large enough to be quantised, experts that differ, a router that is decided."""
    arguments = {"image_size": 16, "patch_size": 8, "num_layers": 2, "width": 32, "mlp_dim": 32}
    arguments |= {"num_heads": 2, "num_classes": 5, "num_experts": 4, "num_moe_layers": 1}
    arguments |= {"superclasses": SUPERCLASSES, "router_input": "mean", **overrides}
    model = models.MobileVMoE(**arguments)
    rng = np.random.default_rng(0)
    for variable in model.trainable_variables:
        variable.assign(0.15 * rng.normal(size=variable.shape))
    router = model.get_layer("router").kernel
    router.assign(rng.normal(size=router.shape))
    return model


def images(count=12):
    """One by one, each with a tint of its own: they choose different experts."""
    rng = np.random.default_rng(1)
    noise = rng.uniform(-1, 1, (count, 1, 16, 16, 3))
    return (0.5 * noise + rng.uniform(-1, 1, (count, 1, 1, 1, 3))).astype("float32")


def difference(model, exported):
    """The largest difference of the logits; experts must be the same, and not always one."""
    wanted = models.with_router_outputs(model)
    worst, chosen = 0.0, set()
    for image in images():
        found, keras_found = exported.outputs(image), wanted(image)
        experts = np.asarray(keras_found["experts"])
        np.testing.assert_array_equal(found["experts"], experts)
        assert found["experts"].dtype == "int32"
        logits = np.asarray(keras_found["logits"])
        worst = max(worst, np.abs(found["logits"] - logits).max() / max(1, np.abs(logits).max()))
        chosen.add(tuple(experts[0]))
    assert len(chosen) > 1, "another image has to go elsewhere"
    return worst


def operations(path):
    from tensorflow.lite.python import schema_py_generated as schema

    model = schema.Model.GetRootAs(path.read_bytes(), 0)
    names = {code: name for name, code in vars(schema.BuiltinOperator).items()}
    codes = [model.OperatorCodes(i).BuiltinCode() for i in range(model.OperatorCodesLength())]
    return {names[code] for code in codes}


@pytest.mark.parametrize(
    ("precision", "options", "bound", "form"),
    [
        ("float32", {"num_selected": 2}, 1e-5, "branches"),
        ("float32", {"router_input": "token", "num_selected": 2}, 1e-5, "kernels"),
        ("float16", {}, 5e-3, "branches"),
        ("int8", {}, 0.1, "branches"),
    ],
)
def test_a_file_tells_logits_and_experts(tmp_path, monkeypatch, precision, options, bound, form):
    monkeypatch.setattr(routing, "_FEW_WEIGHTS", 1 if form == "branches" else 10_000)
    model, path = mobile(**options), tmp_path / "model.tflite"
    metadata = serving.export(model, path, "litert", precision=precision, verify=False)
    assert metadata.dispatch == {"encoder_block_1_moe": form}
    assert (metadata.precision, metadata.experts_name) == (precision, "experts")
    assert metadata.superclasses == tuple(SUPERCLASSES)
    assert litert_file.custom_operations(path.read_bytes()) == []
    assert ("IF" in operations(path)) == (form == "branches")
    exported = serving.load(path)
    assert exported.metadata == metadata
    worst = difference(model, exported)
    assert worst <= bound
    assert precision == "float32" or worst > 1e-5, "its weights are in fewer bits"
    image = images(1)[0]
    np.testing.assert_array_equal(exported(image), exported.outputs(image)["logits"])


def test_a_dense_model_takes_fewer_bits_too(tmp_path):
    sizes = {}
    for precision in litert_file.PRECISIONS[1:]:
        path = tmp_path / f"{precision}.tflite"
        metadata = serving.export(mobile().dense_twin(), path, "litert", precision=precision)
        assert (metadata.experts_name, metadata.superclasses) == (None, ())
        sizes[precision] = path.stat().st_size
    weights = 4 * mobile().dense_twin().count_params()
    assert sizes["float16"] - sizes["int8"] > 0.15 * weights, "a quarter, but for small ones"


def test_another_expert_is_a_difference(tmp_path, monkeypatch):
    model = mobile()
    told = serving.ExportedModel.outputs

    def changed(self, inputs):
        outputs = told(self, inputs)
        return {**outputs, "experts": (outputs["experts"] + 1) % 4}

    monkeypatch.setattr(serving.ExportedModel, "outputs", changed)
    with pytest.raises(RuntimeError, match="differs from the Keras model by inf"):
        serving.export(model, tmp_path / "served")
    assert not list(tmp_path.iterdir())


def test_a_batch_gathers_kernels_and_a_layer_keeps_what_it_was_given():
    model = mobile()
    with routing.fixed_dispatch(model, None, small=True) as found:
        assert found == {"encoder_block_1_moe": "kernels"}
    with routing.fixed_dispatch(model, 1, small=False) as found:
        assert found == {"encoder_block_1_moe": "kernels"}
    with routing.fixed_dispatch(mobile(dispatch="einsum"), 1, small=True) as found:
        assert found == {"encoder_block_1_moe": "einsum"}
    assert models.image_moe_layers(model)[0].dispatch == "auto"


def test_bad_precisions(tmp_path):
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    with pytest.raises(ValueError, match="precision must be one of 'float32', .*'int4'"):
        serving.export(model, tmp_path / "model.tflite", "litert", precision="int4")
    for name, file_format in (("model.onnx", "onnx"), ("served", "saved_model")):
        with pytest.raises(ValueError, match="precision='int8' is of format='litert'. Received"):
            serving.export(model, tmp_path / name, file_format, precision="int8")


def test_metadata_of_experts_is_checked_as_it_is_read():
    facts = serving.Metadata("litert", "images", (1, 8), "float32", "logits", (1, 2))
    whole = dataclasses.replace(facts, experts_name="experts", superclasses=(1, 0))
    assert serving.Metadata.from_json(whole.to_json()) == whole
    with pytest.raises(ValueError, match="superclasses must be a list of whole numbers"):
        serving.Metadata.from_json(whole.to_json().replace("1,\n    0", '1,\n    "0"'))


def test_the_pixels_of_a_classifier_are_routed(tmp_path):
    classifier = models.Classifier(mobile(), [f"class {i}" for i in range(5)])
    path = tmp_path / "served"
    metadata = serving.export(classifier, path, batch_size=None)
    assert metadata.superclasses == tuple(SUPERCLASSES)
    pixels = 127.5 * (1 + np.clip(images(4)[:, 0], -1, 1))
    wanted = models.with_router_outputs(classifier)(pixels)
    found = serving.load(path).outputs(pixels)
    np.testing.assert_array_equal(found["experts"], np.asarray(wanted["experts"]))
    np.testing.assert_allclose(found["logits"], np.asarray(wanted["logits"]), atol=1e-5)


@pytest.mark.slow
def test_onnx_tells_experts_too(tmp_path):
    model, path = mobile(num_selected=2), tmp_path / "model.onnx"
    serving.export(model, path, "onnx")
    assert difference(model, serving.load(path)) <= 1e-5
