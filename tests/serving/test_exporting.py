"""Exported files in their own runtimes, beside Keras."""

import json
import os
import subprocess
import sys
import zipfile

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_vmoe import layers, models, serving
from keras_vmoe.serving import graph, litert_file, packages, targets
from tests.models import tiny

SUFFIX = {"saved_model": "", "onnx": ".onnx", "litert": ".tflite"}
# Each runs in a process that has its runtime alone.
PROGRAMS = {
    "saved_model": """
import tensorflow as tf
loaded = tf.saved_model.load(path)
outputs = [loaded.serve(x)["logits"].numpy() for x in batches]
named = loaded.signatures["serving_default"](images=tf.constant(batches[0]))["logits"]
assert np.array_equal(named, outputs[0])
""",
    "onnx": """
import onnxruntime
session = onnxruntime.InferenceSession(path)
outputs = [session.run(["logits"], {"images": x})[0] for x in batches]
assert "tensorflow" not in sys.modules
""",
    "litert": """
from ai_edge_litert.interpreter import Interpreter
run = Interpreter(model_path=path).get_signature_runner("serving_default")
outputs = [run(images=x)["logits"] for x in batches]
assert "tensorflow" not in sys.modules
""",
}


def one_block(**arguments):
    arguments = {"num_layers": 1, "placement": (0,), **arguments}
    return tiny.vmoe(**arguments)


def dense():
    model = tiny.vit(num_layers=1)
    tiny.spread(model)
    return model


MODELS = {
    "vit": dense,
    "top_k": lambda: one_block(num_selected=2),
    "vanilla": lambda: one_block(num_selected=1, batch_priority=False, dispatch="grouped"),
    "expert_choice": lambda: one_block(router="expert_choice"),
    "soft": lambda: one_block(router="soft"),
    "erf_map_qk": lambda: one_block(activation="gelu", pooling="map", qk_norm=True),
}


def keras_outputs(model, images):
    with layers.routing_metrics(False):
        return keras.ops.convert_to_numpy(model(images, training=False))


def exported_to(folder, model, file_format, **options):
    path = folder / f"model{SUFFIX[file_format]}"
    serving.export(model, path, file_format, **options)
    return path


def in_its_own_process(path, file_format, batches):
    folder = path.parent / "io"
    folder.mkdir()
    np.savez(folder / "in.npz", *batches)
    program = (
        "import sys, numpy as np\n"
        "path, folder = sys.argv[1:]\n"
        "batches = list(np.load(folder + '/in.npz').values())\n"
        f"{PROGRAMS[file_format]}"
        "assert not [m for m in sys.modules if m.startswith('keras_vmoe')]\n"
        "np.savez(folder + '/out.npz', *outputs)\n"
    )
    command = [sys.executable, "-c", program, str(path), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)
    assert done.returncode == 0, done.stderr
    return list(np.load(folder / "out.npz").values())


def quick_first(names):
    """The first of many cases, and the others marked slow."""
    first, *others = names
    return [first, *(pytest.param(name, marks=pytest.mark.slow) for name in others)]


@pytest.mark.parametrize("file_format", serving.FORMATS)
def test_a_classifier_in_a_process_of_its_own(tmp_path, file_format):
    classifier = models.Classifier(one_block(num_selected=2), ["ä", "b", "c"])
    path = exported_to(tmp_path, classifier, file_format, batch_size=None)
    rng = np.random.default_rng(1)
    shapes = [(1, 16, 16, 3), (4, 16, 16, 3), (7, 16, 16, 3)]
    if file_format == "saved_model":
        shapes += [(2, 21, 13, 3)]
    batches = [rng.uniform(0, 255, shape).astype("float32") for shape in shapes]
    for images, given in zip(batches, in_its_own_process(path, file_format, batches), strict=True):
        np.testing.assert_allclose(given, keras_outputs(classifier, images), atol=1e-5)


@pytest.mark.parametrize("file_format", ["onnx", "litert"])
@pytest.mark.parametrize("name", quick_first(MODELS))
def test_every_router_in_every_format(tmp_path, name, file_format):
    model = MODELS[name]()
    exported = serving.load(exported_to(tmp_path, model, file_format, batch_size=4, verify=False))
    for seed in range(3):
        images = tiny.images(4, seed)
        np.testing.assert_allclose(exported(images), keras_outputs(model, images), atol=1e-5)
    with pytest.raises(ValueError, match=r"shape \(4, 16, 16, 3\).*\(3, 16, 16, 3\)"):
        exported(images[:3])
    assert not set(exported.metadata.dispatch.values()) - {"einsum", "gather"}


def telling_model(batch_priority):
    """Tokens to their experts: an expert's output is its own axis, times the token's weight."""
    router = layers.TopKRouter(
        6, 2, capacity_factor=0.7, capacity_multiple_of=1, batch_priority=batch_priority
    )
    moe = layers.MoEMLP(router, hidden_dim=4, images_per_group=3)
    inputs = keras.Input((5, 6), name="tokens")
    model = models.FunctionalModel(inputs, moe(inputs))
    moe.experts.output_kernel.assign(np.zeros(moe.experts.output_kernel.shape))
    moe.experts.output_bias.assign(np.eye(6))
    moe.router.kernel.assign(np.random.default_rng(0).normal(size=(6, 6)))
    return model


@pytest.mark.parametrize("batch_priority", [True, False])
@pytest.mark.parametrize("file_format", serving.FORMATS)
def test_each_token_goes_where_it_goes_in_keras(tmp_path, file_format, batch_priority):
    model = telling_model(batch_priority)
    exported = serving.load(exported_to(tmp_path, model, file_format, batch_size=None))
    dropped = 0
    for size in (1, 3, 8):
        tokens = np.random.default_rng(size).normal(size=(size, 5, 6)).astype("float32")
        wanted, given = keras_outputs(model, tokens), exported(tokens)
        np.testing.assert_array_equal(given != 0, wanted != 0)
        np.testing.assert_allclose(given, wanted, atol=1e-6)
        dropped += int((wanted != 0).sum(-1).min() < 2)
    assert dropped, "capacity has to matter here"


def test_weights_are_written_once(tmp_path):
    model = one_block(width=64, mlp_dim=256)
    for file_format in serving.FORMATS:
        path = exported_to(tmp_path, model, file_format, verify=False)
        files = [path] if path.is_file() else path.glob("variables/*.data*")
        size = sum(file.stat().st_size for file in files)
        assert 1 < size / (4 * model.count_params()) < 1.2, file_format


def test_what_files_say_of_themselves(tmp_path):
    classifier = models.Classifier(dense(), ["ä", "b", "c"])
    for file_format in serving.FORMATS:
        path = exported_to(tmp_path, classifier, file_format, batch_size=2)
        facts = serving.load(path).metadata
        size = (None, None) if file_format == "saved_model" else (16, 16)
        assert (facts.input_name, facts.input_shape) == ("images", (2, *size, 3))
        assert (facts.output_name, facts.output_shape) == ("logits", (2, 3))
        assert facts.class_names == ("ä", "b", "c")
        assert facts.value_range == (0.0, 255.0)
        assert facts.dispatch == {}
    assert serving.export(dense(), tmp_path / "bare").value_range == (-1.0, 1.0)
    onnx = packages.load("onnx").load(tmp_path / "model.onnx")
    assert [entry.version for entry in onnx.opset_import if entry.domain in ("", "ai.onnx")] == [18]
    assert litert_file.custom_operations((tmp_path / "model.tflite").read_bytes()) == []


WRAPPERS = {
    "with_routing": lambda: models.with_routing(tiny.vmoe(), capacity_factor=4),
    "averaged_prediction": lambda: models.averaged_prediction(tiny.ensemble()),
    "both": lambda: models.averaged_prediction(models.with_routing(tiny.ensemble(), 1, 4)),
}


@pytest.mark.parametrize("name", WRAPPERS)
def test_a_wrapped_model_says_what_the_model_says(tmp_path, name):
    wrapped = WRAPPERS[name]()
    wrapped.save(tmp_path / "wrapped.keras")
    for model in (wrapped, keras.models.load_model(tmp_path / "wrapped.keras")):
        with graph.traced(model, "saved_model", 1, fixed_shapes=False) as traced:
            assert traced.metadata.output_name == "logits"
            assert traced.metadata.value_range == (-1.0, 1.0)


def test_what_is_not_known_is_not_said():
    features = models.feature_extractor(tiny.vit())
    for model, name, value_range in (
        (features, "outputs", (-1.0, 1.0)),
        (models.feature_extractor(models.Classifier(tiny.vit(), "abc")), "outputs", (0.0, 255.0)),
        (tiny.vit(num_classes=None), "outputs", (-1.0, 1.0)),
        (models.FunctionalModel(features.input, features.output), "outputs", None),
        (keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)]), "outputs", None),
    ):
        with graph.traced(model, "saved_model", 1, fixed_shapes=False) as traced:
            assert traced.metadata.output_name == name
            assert traced.metadata.value_range == value_range


def test_dispatch_is_chosen_by_arithmetic_and_given_back(tmp_path):
    model = tiny.vmoe(mlp_dim=128, images_per_group=8)
    with graph.traced(model, "onnx", 1, fixed_shapes=True) as traced:
        assert set(traced.metadata.dispatch.values()) == {"einsum"}  # 8 * 5 tokens <= 128
    with graph.traced(model, "onnx", None, fixed_shapes=True) as traced:
        assert set(traced.metadata.dispatch.values()) == {"gather"}
    assert {layer.dispatch for layer in models.moe_layers(model)} == {"auto"}
    forced = tiny.vmoe(dispatch="einsum")
    with graph.traced(forced, "onnx", None, fixed_shapes=True) as traced:
        assert set(traced.metadata.dispatch.values()) == {"einsum"}


def test_no_routing_metric_is_in_the_graph():
    model = tiny.vmoe()
    for fixed in (True, False):
        with graph.traced(model, "onnx", 2, fixed) as traced:
            function = traced.function.get_concrete_function()
        kinds = {op.type for op in function.graph.get_operations()}
        assert not [kind for kind in kinds if "Assign" in kind]


@pytest.mark.parametrize("dtype", ["mixed_bfloat16", "float64"])
def test_dtypes_that_a_format_does_not_take(tmp_path, dtype):
    model = one_block(dtype=dtype)
    with pytest.raises(ValueError, match=f"litert.*{dtype.removeprefix('mixed_')}.*saved_model"):
        serving.export(model, tmp_path / "model.tflite", "litert")
    exported = serving.load(exported_to(tmp_path, model, "saved_model", batch_size=2))
    assert exported(tiny.images(2)).shape == (2, 3)


def test_an_operation_that_litert_lacks_is_named(tmp_path):
    inputs = keras.Input((3,))
    model = keras.Model(inputs, keras.ops.arctanh(keras.ops.tanh(inputs)))
    with pytest.raises(ValueError, match="none for: Atanh"):
        serving.export(model, tmp_path / "model.tflite", "litert")
    assert not list(tmp_path.iterdir()), "nothing is left behind"


def test_a_file_that_differs_is_not_kept(tmp_path, monkeypatch):
    model = dense()
    monkeypatch.setattr(
        serving.ExportedModel,
        "outputs",
        lambda self, x: {"logits": keras_outputs(model, x) + 1e-3},
    )
    with pytest.raises(RuntimeError, match=r"served differs from the Keras model by 0.0"):
        serving.export(model, tmp_path / "served")
    assert not list(tmp_path.iterdir())


def test_nothing_is_overwritten_unasked(tmp_path):
    path = tmp_path / "served"
    serving.export(dense(), path, verify=False)
    with pytest.raises(FileExistsError, match="overwrite it"):
        serving.export(dense(), path)
    serving.export(dense(), path, batch_size=3, overwrite=True, verify=False)
    assert serving.load(path).metadata.batch_size == 3
    (tmp_path / "photos").mkdir()
    with pytest.raises(FileExistsError, match="no exported model.*not\\s+overwritten"):
        serving.export(dense(), tmp_path / "photos", overwrite=True)


@pytest.mark.parametrize("own", ["notes.txt", "assets/words.txt", "assets.extra/labels.txt"])
def test_a_folder_with_files_of_others_is_not_replaced(tmp_path, own):
    path = tmp_path / "served"
    serving.export(dense(), path, verify=False)
    (path / own).write_text("mine")
    with pytest.raises(FileExistsError, match=f"served holds '{own}'.*not overwritten"):
        serving.export(dense(), path, overwrite=True, verify=False)
    assert (path / own).read_text() == "mine"
    (path / own).unlink()
    serving.export(dense(), path, overwrite=True, verify=False)
    assert [file.name for file in tmp_path.iterdir()] == ["served"]


def test_models_of_others_are_not_replaced(tmp_path):
    tf.saved_model.save(tf.Module(), str(tmp_path / "theirs"))
    with zipfile.ZipFile(tmp_path / "theirs.tflite", "w") as archive:
        archive.writestr("labels.txt", "a")
    (tmp_path / "theirs.onnx").write_bytes(b"nothing")
    for file_format, suffix in SUFFIX.items():
        path = tmp_path / f"theirs{suffix}"
        with pytest.raises(FileExistsError, match="no exported model in format.*not overwritten"):
            serving.export(dense(), path, file_format, overwrite=True, verify=False)
    assert zipfile.is_zipfile(tmp_path / "theirs.tflite")
    assert (tmp_path / "theirs" / "saved_model.pb").is_file()


def test_a_crash_while_a_folder_is_replaced_leaves_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / "served"
    serving.export(dense(), path, verify=False)
    replace = os.replace

    def fails_for_the_new_one(source, target):
        if ".export-" in str(source):
            raise OSError("no space left")
        replace(source, target)

    monkeypatch.setattr(targets.os, "replace", fails_for_the_new_one)
    with pytest.raises(OSError, match="no space left"):
        serving.export(dense(), path, batch_size=3, overwrite=True, verify=False)
    assert serving.load(path).metadata.batch_size == 1
    assert [file.name for file in tmp_path.iterdir()] == ["served"]


def two_inputs():
    a, b = keras.Input((3,)), keras.Input((3,))
    return keras.Model([a, b], a + b)


@pytest.mark.parametrize(
    ("make", "arguments", "message"),
    [
        (dense, {"format": "pb"}, "format must be one of 'saved_model', 'onnx', 'litert'.*'pb'"),
        (dense, {"format": "onnx"}, "path must end in .onnx"),
        (dense, {"path": "model.onnx"}, "path must be a folder"),
        (dense, {"batch_size": 0}, "batch_size=0"),
        (two_inputs, {}, "one input and one output.*2 inputs"),
        (lambda: "model.keras", {}, "must be a Keras model"),
        (
            lambda: keras.Sequential([keras.Input((None, 3)), keras.layers.Dense(1)]),
            {"format": "onnx", "path": "model.onnx"},
            r"known axes.*\(1, None, 3\)",
        ),
    ],
)
def test_bad_input_is_named(tmp_path, make, arguments, message):
    path = tmp_path / arguments.get("path", "served")
    arguments = {name: value for name, value in arguments.items() if name != "path"}
    with pytest.raises(ValueError, match=message):
        serving.export(make(), path, **arguments)


def test_a_missing_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tf2onnx", None)
    with pytest.raises(ImportError, match=r"tf2onnx.*pip install 'keras-vmoe\[export\]'"):
        serving.export(dense(), tmp_path / "model.onnx", "onnx")
    monkeypatch.setitem(sys.modules, "ai_edge_litert.interpreter", None)
    with pytest.raises(ImportError, match="ai-edge-litert is needed"):
        packages.load("ai_edge_litert.interpreter")


def test_a_model_of_over_2_gb_is_refused(tmp_path, monkeypatch):
    model = dense()
    monkeypatch.setattr(model, "count_params", lambda: 10**9)
    with pytest.raises(ValueError, match="less than 2 GB.*4.0 GB"):
        serving.export(model, tmp_path / "model.onnx", "onnx")


def test_metadata_is_plain_json(tmp_path):
    serving.export(models.Classifier(dense(), "abc"), tmp_path / "served", verify=False)
    text = (tmp_path / "served" / "assets.extra" / "keras_vmoe.json").read_text()
    assert json.loads(text)["class_names"] == ["a", "b", "c"]
