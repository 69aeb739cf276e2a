import os

import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.experimental import dtensor

from keras_vmoe import distribution, layers, models, ops
from keras_vmoe.distribution import mesh as mesh_module
from keras_vmoe.distribution.grid import parse_sizes
from keras_vmoe.distribution.mesh import COMBINE_ALL_REDUCES, Mesh
from keras_vmoe.distribution.rules import axes_of
from keras_vmoe.distribution.storage import set_storage, unallocated
from keras_vmoe.distribution.training import require_groups

SIZES = {"image_size": 16, "patch_size": 8, "width": 8, "mlp_dim": 16, "num_heads": 2}


@pytest.fixture(autouse=True)
def kept_environment(monkeypatch):
    monkeypatch.setenv(COMBINE_ALL_REDUCES, "1")  # so that it is as before afterwards


@pytest.fixture
def one():
    return Mesh(batch=1, expert=1, device_type="CPU")


def grid(monkeypatch, batch, expert):
    """A mesh of more devices than this process has: enough for what is checked before use."""
    monkeypatch.setattr(mesh_module, "_require_devices", lambda *_: None)
    monkeypatch.setattr(
        mesh_module,
        "_grid",
        lambda mesh, _: tf.experimental.dtensor.Mesh(
            ["batch", "expert"],
            np.arange(batch * expert).reshape(batch, expert),
            list(range(batch * expert)),
            [f"/job:localhost/replica:0/task:0/device:CPU:{i}" for i in range(batch * expert)],
        ),
    )
    return Mesh(batch, expert, device_type="CPU")


def make_model(**changes):
    arguments = {"num_layers": 1, "placement": (0,), "num_experts": 4, "num_classes": 3}
    return models.VMoE(**SIZES, **{**arguments, **changes})


# The mesh.


def test_sizes_are_parsed():
    assert parse_sizes("batch:2,expert:4") == {"batch": 2, "expert": 4}
    assert parse_sizes("expert:8") == {"expert": 8}
    assert parse_sizes(" batch : 2 ") == {"batch": 2}


@pytest.mark.parametrize(
    "text", ["", "2,4", "batch", "batch:", "batch:0", "batch:-2", "model:2", "batch:2,batch:4"]
)
def test_other_words_are_an_error(text):
    with pytest.raises(ValueError, match="such as 'batch:2,expert:4'. Received: "):
        Mesh.parse(text)


@pytest.mark.parametrize("size", [0, -1, 1.5, "2"])
def test_a_size_that_is_none_is_an_error(size):
    with pytest.raises(ValueError, match="expert must be"):
        Mesh(expert=size)


def test_another_number_of_devices_is_an_error():
    with pytest.raises(ValueError, match="must be the number of devices, .*virtual_cpus"):
        Mesh(batch=2, expert=64, device_type="CPU")


def test_an_unknown_or_absent_type_of_device_is_an_error():
    with pytest.raises(ValueError, match="device_type must be one of"):
        Mesh(device_type="abacus")
    with pytest.raises(ValueError, match="there is no TPU on this machine"):
        Mesh(device_type="TPU")


@pytest.mark.parametrize(
    ("kind", "jobs", "started"), [("TPU", "", 1), ("CPU", "a:1,b:1", 1), ("CPU", "", 0)]
)
def test_a_tpu_and_a_cluster_are_started_before_their_devices_are_used(
    monkeypatch, kind, jobs, started
):
    steps = []

    def start(device_type):
        steps.append("start")
        assert (device_type, os.environ[COMBINE_ALL_REDUCES]) == (kind, "0")

    if jobs:
        monkeypatch.setenv("DTENSOR_JOBS", jobs)
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: [kind])
    monkeypatch.setattr(mesh_module.dtensor, "num_local_devices", lambda kind: 1)
    monkeypatch.setattr(mesh_module.dtensor, "initialize_accelerator_system", start)
    for name in ("create_mesh", "create_distributed_mesh"):
        monkeypatch.setattr(mesh_module.dtensor, name, lambda *_, **__: steps.append("devices"))
    Mesh(expert=2 if jobs else 1, device_type=kind)
    assert steps == ["start"] * started + ["devices"]
    # Once a process: DTensor refuses a second start.
    monkeypatch.setattr(mesh_module.accelerator_util, "is_initialized", lambda: True)
    Mesh(expert=2 if jobs else 1, device_type=kind)
    assert steps[started + 1 :] == ["devices"]


def test_a_cluster_that_starts_too_late_is_an_error(monkeypatch):
    tf.config.list_logical_devices()
    count = 2 * tf.experimental.dtensor.num_local_devices("CPU")
    monkeypatch.setenv("DTENSOR_JOBS", "localhost:1,localhost:2")
    with pytest.raises(RuntimeError, match="a Mesh of CPUs in 2 processes comes too late"):
        Mesh(expert=count, device_type="CPU")


def test_devices_can_be_named(one):
    assert Mesh(devices=["CPU:0"], device_type="cpu").dtensor == one.dtensor


def test_virtual_cpus_after_the_start_are_an_error():
    tf.config.list_logical_devices()
    with pytest.raises(RuntimeError, match="too late"):
        distribution.virtual_cpus(97)


def test_making_a_mesh_switches_the_pass_off(one):
    assert os.environ[COMBINE_ALL_REDUCES] == "0"


@pytest.mark.parametrize("value", ["1", "", None])
def test_nothing_runs_once_the_pass_is_on_again(one, monkeypatch, value):
    double = one.function(lambda x: 2 * x)
    assert one.gather(double(one.split(np.ones(1)))).tolist() == [2.0]
    if value is None:
        monkeypatch.delenv(COMBINE_ALL_REDUCES)
    else:
        monkeypatch.setenv(COMBINE_ALL_REDUCES, value)
    with pytest.raises(RuntimeError, match=f"{COMBINE_ALL_REDUCES} must be 0"):
        double(one.split(np.ones(1)))


def test_layouts(monkeypatch):
    two_four = grid(monkeypatch, 2, 4)
    assert two_four.layout(3, ("batch",)).sharding_specs == ["batch", "unsharded", "unsharded"]
    assert two_four.layout(2, (None, "expert")).sharding_specs == ["unsharded", "expert"]
    assert two_four.layout(2, ("expert", "batch")).sharding_specs == ["expert", "batch"]


def test_on_a_row_of_devices_images_are_split_as_experts_are(monkeypatch):
    row = grid(monkeypatch, 1, 8)
    assert row.layout(2, ("batch",)).sharding_specs == ["expert", "unsharded"]
    # A mesh axis splits one axis of a tensor, the first.
    assert row.layout(2, ("expert", "batch")).sharding_specs == ["expert", "unsharded"]


def test_layouts_that_are_none_are_an_error(one):
    with pytest.raises(ValueError, match="axes must be 'batch', 'expert' or None"):
        one.layout(2, ("model",))
    with pytest.raises(ValueError, match="axes must be at most rank=1 many"):
        one.layout(1, ("batch", "expert"))


def test_a_batch_that_does_not_divide_is_an_error(monkeypatch, one):
    with pytest.raises(ValueError, match="must be a multiple of 4"):
        grid(monkeypatch, 4, 2).split({"image": np.zeros((6, 2))})
    with pytest.raises(ValueError, match="must be a multiple of 1"):
        one.split(np.zeros((0, 2)))


def test_groups_that_do_not_divide_are_an_error(monkeypatch):
    mesh, model = grid(monkeypatch, 4, 2), make_model(images_per_group=8)
    with pytest.raises(ValueError, match="over images_per_group=8 must be a multiple of 4"):
        require_groups(model, mesh, 16)
    with pytest.raises(ValueError, match="images_per_group=8 of .* must divide the batch"):
        require_groups(model, mesh, 12)
    require_groups(model, mesh, 32)
    with pytest.raises(ValueError, match="train.eval_batch_size must be a multiple of 4"):
        require_groups(model, mesh, 6, "train.eval_batch_size")


# Rules.


def test_the_rules_of_the_package_find_all_experts(monkeypatch):
    mesh, model = grid(monkeypatch, 2, 4), make_model()
    axes = axes_of(model.variables, mesh)
    split = {v.path.split("/", 1)[1] for v, a in zip(model.variables, axes, strict=True) if a}
    assert len(split) == 4
    assert all("/experts/" in path for path in split)


def test_a_rule_that_matches_nothing_is_an_error(monkeypatch):
    mesh, model = grid(monkeypatch, 2, 4), make_model()
    with pytest.raises(ValueError, match="'exprets', which matches no variable; the variables are"):
        distribution.place_model(model, mesh, [("exprets", ("expert",))])


def test_an_expert_that_is_not_split_is_an_error(monkeypatch, one):
    mesh, model = grid(monkeypatch, 2, 4), make_model()
    kernels_only = [(r"experts/(hidden|output)_kernel$", ("expert",))]
    with pytest.raises(ValueError, match="leave the experts of .*_bias on every device"):
        distribution.place_model(model, mesh, kernels_only)
    distribution.place_model(model, one, kernels_only)  # one device has them all anyway


def test_a_mesh_that_does_not_divide_the_experts_is_an_error(monkeypatch):
    mesh, model = grid(monkeypatch, 2, 4), make_model(num_experts=6)
    with pytest.raises(
        ValueError, match=r"expert=4 of Mesh\(.*\) must divide num_experts=6, the first axis of"
    ):
        distribution.place_model(model, mesh)


@pytest.mark.parametrize("axes", ["expert", ("model",)])
def test_a_rule_of_unknown_axes_is_an_error(one, axes):
    with pytest.raises(ValueError, match="a rule's axes must be a tuple"):
        distribution.place_model(make_model(), one, [("experts", axes)])


def test_a_rule_of_more_axes_than_a_variable_has_is_an_error(one):
    with pytest.raises(ValueError, match="but its shape is"):
        distribution.place_model(make_model(), one, [("head/bias", (None, "expert"))])


def test_the_first_rule_that_matches_decides(one):
    model = make_model()
    rules = [("head/kernel", ()), ("head/(kernel|bias)", ("batch",))]
    paths = [variable.path for variable in model.variables]
    found = dict(zip(paths, axes_of(model.variables, one, rules), strict=True))
    assert found["head/kernel"] == ()
    assert found["head/bias"] == ("batch",)


# Storage.


def test_keras_keeps_the_value_where_the_mesh_puts_it(one):
    """If this fails, Keras has changed: mend `storage.set_storage`."""
    variable = keras.Variable(np.ones(3, "float32"))
    assert {"_value", "_initializer"} <= set(vars(variable))
    assert variable.value is variable._value
    layout = one.layout(1)
    value = tf.experimental.dtensor.DVariable(
        tf.experimental.dtensor.pack([tf.constant([2.0, 3.0, 4.0])], layout)
    )
    set_storage(variable, value)
    assert variable.value is value
    variable.assign(variable + 1)
    assert distribution.to_numpy(variable, one).tolist() == [3.0, 4.0, 5.0]
    assert one.gather(value).tolist() == [3.0, 4.0, 5.0]


def test_a_keras_that_keeps_it_elsewhere_is_an_error():
    with pytest.raises(RuntimeError, match="elsewhere than 3.15 did"):
        set_storage(type("Variable", (), {})(), None)


def test_a_model_is_born_with_the_values_that_it_has_without_a_mesh(one):
    for shared in (True, False):
        keras.utils.set_random_seed(1)
        wanted = make_model(shared_expert_init=shared)
        keras.utils.set_random_seed(1)
        found = distribution.build_model(lambda: make_model(shared_expert_init=shared), one)  # noqa: B023
        for a, b in zip(found.variables, wanted.variables, strict=True):
            np.testing.assert_array_equal(distribution.to_numpy(a, one), b.numpy())


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("seed", [None, 3])
def test_experts_are_drawn_part_by_part(shared, seed):
    with unallocated():
        experts = layers.ExpertMLP(
            6, 5, shared_init=shared, kernel_initializer=keras.initializers.GlorotUniform(seed)
        )
        experts.build((6, None, 4))
    for variable in experts.weights:
        initializer, shape = variable._initializer, tuple(variable.shape)
        parts = [initializer.part(shape, i, i + 2) for i in (0, 2, 4)]
        np.testing.assert_array_equal(np.concatenate(parts), initializer(shape))
        assert (np.ptp(np.concatenate(parts), axis=0) == 0).all() == shared


def test_no_value_is_made_before_its_place(one, monkeypatch):
    with unallocated():
        model = make_model()
    assert all(variable._value is None for variable in model.variables)


def test_a_variable_stays_where_it_is(one, monkeypatch):
    model = make_model()
    distribution.place_model(model, one)
    distribution.place_model(model, one)
    with pytest.raises(ValueError, match="lies on a mesh already, otherwise"):
        distribution.place_model(model, grid(monkeypatch, 2, 4))


@pytest.mark.parametrize("dispatch", ["gather", "grouped"])
def test_a_dispatch_that_scatters_is_an_error(one, dispatch):
    with pytest.raises(ValueError, match=f"Received: dispatch='{dispatch}'"):
        distribution.place_model(make_model(dispatch=dispatch), one)


def test_an_optimizer_that_is_built_is_an_error(one):
    model = make_model()
    optimizer = keras.optimizers.Adam()
    optimizer.build(model.trainable_variables)
    with pytest.raises(ValueError, match="optimizer must not be built yet"):
        distribution.build_optimizer(optimizer, model, one)


def test_a_functional_model_leaves_the_mesh_with_its_shared_layers(one):
    images = keras.Input((4, 8))
    mlp = layers.MoEMLP(layers.TopKRouter(num_experts=4), hidden_dim=16)
    model = keras.Model(images, keras.layers.Dense(2)(mlp(mlp(images))))
    tokens = np.random.default_rng(0).normal(size=(2, 4, 8)).astype("float32")
    wanted = keras.ops.convert_to_numpy(model(tokens))
    distribution.place_model(model, one)
    copy = distribution.gather_model(model, one)
    np.testing.assert_allclose(copy.predict(tokens, verbose=0), wanted, atol=1e-6)
    assert not any(dtensor.is_dtensor(v.value) for v in copy.variables)


# The hook.


def test_without_a_mesh_layouts_change_nothing():
    x = keras.ops.ones((2, 3))
    assert ops.lay_out(x, "batch", "expert") is x
    assert not ops.on_mesh()


def test_hooks_nest_and_go_away():
    with ops.laid_out_by(lambda x, axes: ("outer", axes)):
        assert ops.on_mesh()
        with ops.laid_out_by(lambda x, axes: ("inner", axes)):
            assert ops.lay_out(1, "batch") == ("inner", ("batch",))
        assert ops.lay_out(1) == ("outer", ())
    assert ops.lay_out(1) == 1


@pytest.mark.parametrize("router", ["top_k", "expert_choice", "soft"])
def test_on_a_mesh_the_layer_gives_what_it_gives_without(one, router):
    moe = layers.MoEMLP(layers.routers.get(router), hidden_dim=4, images_per_group=2)
    x = np.random.default_rng(0).normal(size=(4, 3, 5)).astype("float32")
    model = keras.Sequential([keras.Input((3, 5)), moe])
    wanted = keras.ops.convert_to_numpy(model(x))
    distribution.place_model(model, one, [("experts/.*_(kernel|bias)$", ("expert",))])
    np.testing.assert_allclose(one.gather(one.function(model)(one.split(x))), wanted, atol=1e-6)


def test_a_model_that_routes_whole_images_is_refused(one):
    with pytest.raises(ValueError, match="must route tokens, not whole images, to be on a mesh"):
        distribution.build_model(
            lambda: models.MobileVMoE(num_layers=2, num_moe_layers=1, num_classes=3, **SIZES), one
        )
