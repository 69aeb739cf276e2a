"""What the tests of JAX meshes run in processes of their own: `python -m … 'NAME [WORD ...]' ...`.

`numbers FILE.npz SIZES [DTYPE]` writes what five steps on a mesh of virtual CPUs gave, and
`alone FILE.npz [DTYPE]` what they give without a mesh on TensorFlow; the others print.
"""

import contextlib
import sys
from unittest import mock

import keras
import numpy as np

from keras_vmoe import distribution, models
from keras_vmoe.distribution.compiled import find_collectives
from keras_vmoe.layers.experts import _Stacked
from tests.distribution.parts import run_parts
from tests.support import garbage

SIZES = {"image_size": 16, "patch_size": 8, "width": 12, "mlp_dim": 20, "num_heads": 2}
CLASSES, BATCH, STEPS = 3, 16, 5


def make_model(**changes):
    # Without noise: the backends draw other numbers.
    arguments = {
        **SIZES,
        "num_layers": 1,
        "placement": (0,),
        "num_classes": CLASSES,
        "num_experts": 8,
        "noise_std": 0.0,
        "images_per_group": 1,
        "head_kernel_initializer": "glorot_uniform",
    }
    return models.VMoE(**{**arguments, **changes})


def make_optimizer():
    return keras.optimizers.AdamW(1e-2, weight_decay=0.1, global_clipnorm=1.0)


def loss(labels, logits):
    return keras.ops.categorical_crossentropy(labels, logits, from_logits=True)


def make_batches():
    rng = np.random.default_rng(0)
    return [
        {
            "image": rng.normal(size=(BATCH, 16, 16, 3)).astype("float32"),
            "label": np.eye(CLASSES, dtype="float32")[rng.integers(0, CLASSES, BATCH)],
        }
        for _ in range(STEPS)
    ]


def first_weights():
    """The same on both backends, whatever their random numbers."""
    rng = np.random.default_rng(1)
    shapes = [tuple(v.shape) for v in make_model().trainable_variables]
    return [rng.normal(0, 0.3, shape).astype("float32") for shape in shapes]


def take_steps(step, model, to_numpy):
    """The losses of each step, and the weights after the last."""
    losses = []
    for batch in make_batches():
        found = step(batch)
        losses.append([float(found[name]) for name in ("loss", "auxiliary_loss")])
    weights = {f"weight {i}": to_numpy(v) for i, v in enumerate(model.trainable_variables)}
    return {"losses": np.array(losses), **weights}


def on_mesh(sizes, dtype="float32"):
    mesh = distribution.JaxMesh.parse(sizes)
    model = distribution.build_model(lambda: make_model(dtype=dtype), mesh)
    optimizer = distribution.build_optimizer(make_optimizer(), model, mesh)
    return mesh, model, distribution.JaxTrainStep(mesh, model, optimizer, loss)


def numbers(path, sizes, dtype="float32"):
    mesh, model, step = on_mesh(sizes, dtype)
    for variable, value in zip(model.trainable_variables, first_weights(), strict=True):
        distribution.assign(variable, value, mesh)
    found = take_steps(step, model, lambda v: distribution.to_numpy(v, mesh))
    np.savez(path, **found)


def alone(path, dtype="float32"):
    import tensorflow as tf

    model, optimizer = make_model(dtype=dtype), make_optimizer()
    variables = model.trainable_variables
    for variable, value in zip(variables, first_weights(), strict=True):
        variable.assign(value)
    optimizer.build(variables)

    @tf.function(autograph=False)
    def step(batch):
        with tf.GradientTape() as tape:
            logits = model(batch["image"], training=True)
            task = tf.reduce_mean(tf.cast(loss(batch["label"], logits), "float32"))
            auxiliary = tf.add_n([tf.cast(x, "float32") for x in model.losses])
            total = task + auxiliary
        optimizer.apply(tape.gradient(total, [v.value for v in variables]), variables)
        return {"loss": task, "auxiliary_loss": auxiliary}

    np.savez(path, **take_steps(step, model, keras.ops.convert_to_numpy))


def memory(sizes):
    """Bytes of expert variables and of their slots: of each device, then of the whole."""
    mesh, model, step = on_mesh(sizes)
    step(make_batches()[0])
    for variables in (model.variables, step.optimizer.variables):
        experts = [v for v in variables if "experts" in v.path]
        whole = sum(int(np.prod(v.shape)) * 4 for v in experts)
        print("bytes", *distribution.bytes_per_device(experts, mesh), whole)


def collectives(sizes):
    """The shapes of the step's all-to-alls and all-gathers, each shape once."""
    *_, step = on_mesh(sizes)
    batch = {"image": ((BATCH, 16, 16, 3), "float32"), "label": ((BATCH, CLASSES), "float32")}
    found = find_collectives(step.lower(batch).compile().as_text())
    for name in ("all-to-all", "all-gather"):
        shapes = {shape for c in found if c.kind == name for _, shape in c.shapes}
        print(name, *sorted(",".join(map(str, shape)) for shape in shapes))


def compilations(sizes):
    """How often the step is compiled, for three steps with an assignment in between."""
    mesh, model, step = on_mesh(sizes)
    for batch in make_batches()[:3]:
        step(batch)
        for variable in (*model.trainable_variables, *step.optimizer.variables):
            distribution.assign(variable, distribution.to_numpy(variable, mesh), mesh)
    print("compiled", step._step._cache_size())


def births(sizes):
    """How many experts were drawn at a time, and whether the values are those without a mesh."""
    drawn, part = set(), _Stacked.part

    def noted(self, shape, first, end, dtype=None):
        drawn.add(end - first)
        return part(self, shape, first, end, dtype)

    keras.utils.set_random_seed(3)
    wanted = [keras.ops.convert_to_numpy(v) for v in make_model(shared_expert_init=False).weights]
    mesh = distribution.JaxMesh.parse(sizes)
    keras.utils.set_random_seed(3)
    with mock.patch.object(_Stacked, "part", noted):
        model = distribution.build_model(lambda: make_model(shared_expert_init=False), mesh)
    found = [distribution.to_numpy(v, mesh) for v in model.weights]
    same = all(np.array_equal(a, b) for a, b in zip(found, wanted, strict=True))
    print("drawn", *drawn, same)


def gathered(sizes):
    """How far the logits of a copy are from those of a trained model, and where the copy lies."""
    _, model, step = on_mesh(sizes)
    first, second = make_batches()[:2]
    step(first)
    copy = distribution.gather_model(model, step.mesh)
    with step.mesh.scope():
        wanted = step.mesh.gather(model(step.mesh.split(second["image"])))
    apart = np.abs(copy.predict(second["image"], verbose=0, batch_size=BATCH) - wanted).max()
    print("apart", apart, *{len(v.value.devices()) for v in copy.weights})


def fit(sizes):
    """The losses of `fit` without a mesh and under Keras' own distribution of its rules."""
    rng = np.random.default_rng(2)
    images = rng.normal(size=(4 * BATCH, 16, 16, 3)).astype("float32")
    labels = rng.integers(0, CLASSES, 4 * BATCH)
    mesh = distribution.JaxMesh.parse(sizes)
    losses = []
    for scopes in ((), (mesh.scope(), mesh.model_parallel().scope())):
        with contextlib.ExitStack() as stack:
            for scope in scopes:
                stack.enter_context(scope)
            keras.utils.set_random_seed(4)
            model = make_model()
            model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
            losses += model.fit(
                images, labels, batch_size=BATCH, epochs=2, shuffle=False, verbose=0
            ).history["loss"]
    experts = next(v for v in model.variables if "experts/hidden_kernel" in v.path)
    print("fit", *losses, *(len(s.data) for s in experts.value.addressable_shards))


if __name__ == "__main__":
    garbage.search_seldom()
    run_parts(globals(), sys.argv[1:])
