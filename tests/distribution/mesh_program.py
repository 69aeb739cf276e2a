"""What the tests of meshes run in processes of their own: `python -m … 'NAME [WORD ...]' ...`."""

import functools
import os
import sys
from unittest import mock

import keras
import numpy as np
import tensorflow as tf
from tensorflow.experimental import dtensor

from keras_vmoe import distribution, models
from keras_vmoe.distribution.mesh import COMBINE_ALL_REDUCES
from keras_vmoe.layers.experts import _Stacked
from keras_vmoe.trainers import optimizers
from tests.distribution.parts import run_parts
from tests.support import garbage

# Sizes that differ from one another, and from the number of devices unless they are split.
SIZES = {"image_size": 16, "patch_size": 8, "width": 12, "mlp_dim": 20, "num_heads": 2}
CLASSES, BATCH = 3, 8


def make_model(seed=0, **changes):
    keras.utils.set_random_seed(seed)
    arguments = {
        **SIZES,
        "num_layers": 1,
        "placement": (0,),
        "num_classes": CLASSES,
        "num_experts": 8,
        "images_per_group": 1,
        "head_kernel_initializer": "glorot_uniform",
    }
    return models.VMoE(**{**arguments, **changes})


def make_optimizer():
    # Adam's first steps are signs of gradients, which half precision gets wrong near zero.
    half = keras.config.dtype_policy().compute_dtype != "float32"
    rate = 1e-3 if half else 1e-2
    return keras.optimizers.AdamW(rate, weight_decay=0.1, global_clipnorm=1.0)


def make_batches(count):
    rng = np.random.default_rng(0)
    return [
        {
            "image": rng.normal(size=(BATCH, 16, 16, 3)).astype("float32"),
            "label": np.eye(CLASSES, dtype="float32")[rng.integers(0, CLASSES, BATCH)],
        }
        for _ in range(count)
    ]


def loss(labels, logits):
    return keras.ops.categorical_crossentropy(labels, logits, from_logits=True)


class OneDevice:
    """A model, an optimizer and their step, without a mesh."""

    def __init__(self, make_optimizer=make_optimizer, **changes):
        self.model, self.optimizer = make_model(**changes), make_optimizer()
        self.optimizer.build(self.model.trainable_variables)
        self._step = tf.function(self._take, autograph=False)

    def _take(self, batch):
        variables = self.model.trainable_variables
        with tf.GradientTape() as tape:
            logits = self.model(batch["image"], training=True)
            task = tf.reduce_mean(loss(batch["label"], logits))
            auxiliary = tf.add_n(self.model.losses or [0.0])
            total = task + tf.cast(auxiliary, task.dtype)
        gradients = tape.gradient(total, [v.value for v in variables])
        self.optimizer.apply(gradients, variables)
        return {"loss": task, "auxiliary_loss": auxiliary}

    def step(self, batch):
        return {name: float(value) for name, value in self._step(batch).items()}

    def values(self):
        variables = [*self.model.variables, *self.optimizer.variables]
        return [keras.ops.convert_to_numpy(v) for v in variables]


class OnMesh:
    """The same on a mesh."""

    def __init__(self, mesh, make_optimizer=make_optimizer, **changes):
        self.mesh = mesh
        self.model = distribution.build_model(lambda: make_model(**changes), mesh)
        self.optimizer = distribution.build_optimizer(make_optimizer(), self.model, mesh)
        self.step = distribution.TrainStep(mesh, self.model, self.optimizer, loss)

    def values(self):
        variables = [*self.model.variables, *self.optimizer.variables]
        return [distribution.to_numpy(v, self.mesh) for v in variables]


def largest_difference(ours, theirs):
    return max(
        float(np.abs(a.astype("float64") - b.astype("float64")).max())
        for a, b in zip(ours, theirs, strict=True)
    )


@functools.cache
def alone(dtype, steps, **changes):
    """Losses of some steps on one device, and the values before and after."""
    one = OneDevice(**changes)
    before = one.values()
    return [list(one.step(batch).values()) for batch in make_batches(steps)], before, one.values()


def compare(mesh, steps=5, **changes):
    """The largest differences of losses and of values after some steps."""
    wanted, before, after = alone(keras.config.dtype_policy().name, steps, **changes)
    ours = OnMesh(mesh, **changes)
    assert largest_difference(ours.values(), before) == 0, "the first values differ"
    losses = [list(ours.step(batch).values()) for batch in make_batches(steps)]
    return float(np.abs(np.subtract(losses, wanted)).max()), largest_difference(
        ours.values(), after
    )


def equal(sizes, *words):
    changes = dict(word.split("=") for word in words)
    changes = {name: int(v) if v.isdecimal() else v for name, v in changes.items()}
    keras.config.set_dtype_policy(changes.pop("dtype", "float32"))
    try:
        print("differences", *compare(distribution.Mesh.parse(sizes), **changes))
    finally:
        keras.config.set_dtype_policy("float32")


# The gradient of a key's bias is zero but for rounding, which a small epsilon would make large.
OPTIONS = {
    "remat_map_adafactor": {
        "remat": True,
        "pooling": "map",
        "make_optimizer": lambda: optimizers.Adafactor(
            1e-2, 0.1, epsilon=1e-8, min_dim_size_to_factor=8, global_clipnorm=1.0
        ),
    },
    "accumulation_average": {
        "make_optimizer": lambda: optimizers.AdamW(
            1e-2,
            0.1,
            epsilon=1e-4,
            gradient_accumulation_steps=2,
            global_clipnorm=1.0,
            ema_momentum=0.5,
        )
    },
    "of_keras": {
        "make_optimizer": lambda: keras.optimizers.AdamW(
            1e-2,
            epsilon=1e-4,
            gradient_accumulation_steps=2,
            clipnorm=0.05,
            use_ema=True,
            ema_momentum=0.5,
        )
    },
}


def options():
    """Four steps of each of the options on four devices."""
    mesh = distribution.Mesh(2, 2, devices=[f"CPU:{i}" for i in range(4)])
    for changes in OPTIONS.values():
        print("differences", *compare(mesh, steps=4, **changes), flush=True)
    optimizer = OnMesh(mesh, **OPTIONS["of_keras"]).optimizer
    slots = [v for v in optimizer.variables if "experts" in v.path]
    print("split", len(slots), *{v.value.layout.sharding_specs[0] for v in slots})
    dropout(mesh)


def dropout(mesh):
    """Whether all devices agree on the weights, the last losses over the first, distinct images."""
    ours = OnMesh(mesh, dropout_rate=0.2, attention_dropout_rate=0.2, dispatch="einsum")
    (batch,) = make_batches(1)
    losses = [ours.step(batch)["loss"] for _ in range(30)]
    variables = [*ours.model.variables, *ours.optimizer.variables]
    copies = [mesh.shards(v) for v in variables if "experts" not in v.path]
    agree = all(np.array_equal(part, parts[0]) for parts in copies for part in parts)
    same = mesh.split(np.repeat(batch["image"][:1], BATCH, axis=0))
    logits = mesh.gather(mesh.function(lambda x: ours.model(x, training=True))(same))
    print(
        "dropout",
        int(agree),
        np.mean(losses[-5:]) / np.mean(losses[:5]),
        len({row.tobytes() for row in logits}),
    )


def one_step(batch, expert):
    """A step on four devices, for what DTensor writes down of it."""
    mesh = distribution.Mesh(int(batch), int(expert), devices=[f"CPU:{i}" for i in range(4)])
    OnMesh(mesh).step(make_batches(1)[0])


def trap():
    """The same steps with the pass of DTensor that the mesh switches off."""
    mesh = distribution.Mesh(batch=2, expert=4)
    os.environ[COMBINE_ALL_REDUCES] = "1"
    distribution.Mesh.require_safe = staticmethod(lambda: None)
    print("differences", *compare(mesh))


def memory(sizes):
    """Bytes of expert variables and of their slots: of each device, then of the whole."""
    mesh, drawn, part = distribution.Mesh.parse(sizes), set(), _Stacked.part

    def noted(self, shape, first, end, dtype=None):
        drawn.add(end - first)
        return part(self, shape, first, end, dtype)

    with mock.patch.object(_Stacked, "part", noted):
        ours = OnMesh(mesh)
    print("drawn", *drawn)
    for variables in (ours.model.variables, ours.optimizer.variables):
        experts = [v for v in variables if "experts" in v.path]
        whole = sum(int(np.prod(v.shape)) * 4 for v in experts)
        print("bytes", *distribution.bytes_per_device(experts, mesh), whole)
    others = [v for v in ours.model.trainable_variables if "experts" not in v.path]
    print("bytes", *distribution.bytes_per_device(others, mesh), 4 * count(others))


def two(client):
    """Five steps in a job of two processes, each with half of the devices and of the batch."""
    distribution.virtual_cpus(4)
    mesh, batches = distribution.Mesh(batch=2, expert=4), make_batches(5)
    one, ours, half = OneDevice(), OnMesh(mesh), slice(4 * int(client), 4 * int(client) + 4)
    for batch in batches:
        wanted, found = one.step(batch), ours.step({n: v[half] for n, v in batch.items()})
        print("differences", *(abs(found[name] - wanted[name]) for name in wanted), flush=True)
    print("values", largest_difference(ours.values(), one.values()), flush=True)
    experts = [v for v in ours.model.variables if "experts" in v.path]
    print("bytes", *distribution.bytes_per_device(experts, mesh), 4 * count(experts), flush=True)
    dtensor.barrier(mesh.dtensor)


def gathered(folder):
    """Logits of a trained model: on the mesh, of the copy, of the copy's file; what is in both."""
    mesh = distribution.Mesh(batch=2, expert=4)
    ours, batches = OnMesh(mesh), make_batches(3)
    for batch in batches[:2]:
        ours.step(batch)
    copy = distribution.gather_model(ours.model, mesh)
    ours_before = mesh.gather(mesh.function(ours.model)(mesh.split(batches[2]["image"])))
    copy.save(f"{folder}/model.keras")
    loaded = keras.models.load_model(f"{folder}/model.keras")
    for model in (copy, loaded):
        found = model.predict(batches[2]["image"], verbose=0, batch_size=BATCH)
        print("values", np.abs(found - ours_before).max())
    ours.step(batches[2])  # the copy stays as it was
    print("values", largest_difference(copy.get_weights(), loaded.get_weights()))


def count(variables):
    return sum(int(np.prod(v.shape)) for v in variables)


def checkpoint_of(side):
    weights = {id(v) for v in side.model.weights}
    seeds = [v.value for v in side.model.variables if id(v) not in weights]
    return tf.train.Checkpoint(model=side.model, optimizer=side.optimizer, seeds=seeds)


def checkpoint(folder):
    """Two steps on one mesh; then two more there, on another mesh and on one device."""
    first, second = distribution.Mesh(batch=2, expert=4), distribution.Mesh(expert=8)
    batches = make_batches(4)
    origin = OnMesh(first)
    for batch in batches[:2]:
        origin.step(batch)
    path = checkpoint_of(origin).save(f"{folder}/of_mesh")
    went_on = [origin.step(batch)["loss"] for batch in batches[2:]]
    for side in (OnMesh(second, seed=1), OneDevice(seed=1)):
        checkpoint_of(side).restore(path).assert_consumed()
        resumed = [side.step(batch)["loss"] for batch in batches[2:]]
        print("resumed", *np.abs(np.subtract(resumed, went_on)))
        print("values", largest_difference(side.values(), origin.values()))
    # And from one device to a mesh.
    path = checkpoint_of(side).save(f"{folder}/of_one")
    origin.step(batches[0])
    checkpoint_of(origin).restore(path).assert_consumed()
    print("back", largest_difference(side.values(), origin.values()))
    print("split", *{str(v.value.layout.sharding_specs) for v in origin.model.variables})


if __name__ == "__main__":
    garbage.search_seldom()
    if not sys.argv[1].startswith("two "):
        distribution.virtual_cpus(8)
    run_parts(globals(), sys.argv[1:])
