"""What both backends have to compute alike. Run as a program, writes its numbers to a file.

KERAS_BACKEND=jax python -m tests.backends.cases numbers.npz
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np

import keras_vmoe
from keras_vmoe import checkpoints, layers, models, ops
from tests.layers import cases as layer_cases
from tests.layers import harness
from tests.models import tiny
from tests.support import garbage
from tests.support.golden import load
from tests.support.gradients import layer_gradients, value_and_gradients
from tests.support.oracles import random_gates

Numbers = dict[str, np.ndarray]
LABELS = np.arange(6) % 3


def grouped_matmul() -> Numbers:
    rng = np.random.default_rng(0)
    rows, kernels = rng.normal(size=(9, 3)), rng.normal(size=(4, 3, 2))
    rows, kernels = rows.astype("float32"), kernels.astype("float32")
    found: Numbers = {}
    for sizes in ([2, 0, 3, 4], [0, 0, 0, 0], [1, 2, 0, 3]):
        out, gradients = value_and_gradients(
            lambda r, k, sizes=sizes: keras.ops.sum(
                ops.grouped_matmul(r, k, np.array(sizes, "int32")) ** 2
            ),
            rows,
            kernels,
        )
        named = zip(("loss", "rows", "kernels"), (out, *gradients), strict=True)
        found.update({f"{sizes} {name}": value for name, value in named})
    return found


def plans() -> Numbers:
    rng = np.random.default_rng(1)
    found: Numbers = {}
    for ties in (False, True):
        gates = random_gates(rng, 3, 17, 5, ties)
        mask = rng.random((3, 17)) < 0.8
        for name, plan in {
            "priority": ops.top_k_routing(gates, 2, 4, mask, batch_priority=True),
            "sum": ops.top_k_routing(gates, 2, 4, mask, batch_priority=True, priority_score="sum"),
            "order": ops.top_k_routing(gates, 3, 4, mask),
            "expert_choice": ops.expert_choice_routing(gates, 4, mask),
            "soft": ops.soft_routing(gates[..., None], mask),
        }.items():
            parts = zip(plan._fields, plan, strict=True)
            found.update({f"{name} {ties} {field}": np.asarray(part) for field, part in parts})
        hashed = ops.hash_choices(np.arange(34).reshape(2, 17), 5, 2)
        found[f"hash {ties}"] = np.asarray(hashed)
    return found


def losses() -> Numbers:
    rng = np.random.default_rng(2)
    logits = rng.normal(size=(2, 9, 4)).astype("float32")
    noisy = logits + 0.3 * rng.normal(size=logits.shape).astype("float32")
    mask = rng.random((2, 9)) < 0.7
    found: Numbers = {}
    for name, loss in {
        "importance": lambda x: ops.importance_loss(keras.ops.softmax(x), mask),
        "load": lambda x: ops.load_loss(x, noisy, 0.3, 2, mask),
        "gshard": lambda x: ops.gshard_loss(keras.ops.softmax(x), mask),
        "z": lambda x: ops.router_z_loss(x, mask),
    }.items():
        value, (gradient,) = value_and_gradients(
            lambda x, loss=loss: keras.ops.sum(loss(x)), logits
        )
        found.update({name: value, f"gradient of {name}": gradient})
    return found


def layer(name: str) -> Callable[[], Numbers]:
    return lambda: harness.numbers(layer_cases.ALL[name])


def masked_layer(dispatch: str) -> Callable[[], Numbers]:
    """A batch with a partial group and a mask, through jit on JAX."""

    def compute() -> Numbers:
        case = layer_cases.MOE_MLPS[dispatch]
        x = np.random.default_rng(3).normal(size=(5, 5, 8)).astype("float32")
        mask = np.random.default_rng(4).random((5, 5)) < 0.7
        outputs, gradients, of_x = layer_gradients(
            case.built(), harness.total, x, mask=mask, training=True
        )
        parts = {f"gradient {i}": value for i, value in enumerate(gradients.values())}
        return {"outputs": np.asarray(outputs), "of_x": of_x, **parts}

    return compute


def reference(name: str, training: bool = False, **overrides: object) -> Callable[[], Numbers]:
    """Logits, auxiliary loss and gradients of a golden model."""

    def compute() -> Numbers:
        golden = load(name)
        model = models.from_reference_config(golden.config, image_size=32, **overrides)
        checkpoints.assign_reference_params(model, golden.under("params"))
        noise = golden.under("in")
        handed = [noise[n] for n in sorted(noise) if n.startswith("noise_normal")]
        members = golden.config["encoder"]["moe"].get("ensemble_size", 1)
        handed = [np.repeat(array, members, axis=0) for array in handed]
        with layers.handed_noise(handed if training else []):
            logits, gradients, _ = layer_gradients(
                model,
                lambda y, losses: keras.ops.mean(keras.ops.square(y)) + sum(losses, 0.0),
                golden["in/images"],
                training=training,
            )
        named = checkpoints.reference_variables(model)
        found = {f"gradient of {n}": gradients[v.path] for n, v in named.items()}
        return {"logits": np.asarray(logits), **found}

    return compute


def fit(**overrides: object) -> Callable[[], Numbers]:
    """Two epochs without random draws: the whole history, then what the model predicts."""

    def compute() -> Numbers:
        model = tiny.vmoe(
            num_layers=1,
            placement=(0,),
            noise_std=0.0,
            **overrides,
        )
        model.compile(
            keras.optimizers.SGD(0.05), keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        )
        data = (tiny.images(6), LABELS)
        history = model.fit(
            *data, batch_size=3, epochs=2, shuffle=False, verbose=0, validation_data=data
        ).history
        found = {f"history of {name}": np.array(values) for name, values in history.items()}
        return {**found, "predicted": model.predict(tiny.images(5), verbose=0)}

    return compute


def pair_fit() -> Numbers:
    """A LIMoE's step without random draws, and one modality alone afterwards."""
    model = tiny.limoe(noise_std=0.0)
    model.get_layer("logit_scale").log_scale.assign(np.log(10.0))
    model.compile(keras.optimizers.SGD(0.05))
    pairs = tiny.pairs(6)
    history = model.fit(pairs, batch_size=3, shuffle=False, verbose=0).history
    found = {f"history of {name}": np.array(values) for name, values in history.items()}
    return {
        **found,
        "image": np.asarray(model.encode_image(pairs["images"])),
        "text": model.text_encoder.predict(pairs["tokens"], verbose=0),
    }


def random_fit() -> Numbers:
    """With dropout, noise and recomputation: nothing leaks, nothing diverges, all is reported."""
    keras.utils.set_random_seed(0)
    model = tiny.vmoe(remat=True, dropout_rate=0.1, stochastic_depth_rate=0.1, router="top_k")
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    history = model.fit(tiny.images(6), LABELS, batch_size=3, verbose=0).history
    return {
        "finite": np.array([np.isfinite(v).all() for v in history.values()]),
        "metrics": np.array(sorted(history)),
        "confidence is seen": np.array(history["encoder_block_0_moe/confidence"][0] > 0.25),
    }


def half_precision() -> Numbers:
    model = tiny.vmoe(dtype="mixed_bfloat16", dropout_rate=0.1)
    logits = model(tiny.images(3), training=True)
    return {
        "finite": np.array(np.isfinite(np.asarray(logits)).all()),
        "dtype": np.array(keras.backend.standardize_dtype(logits.dtype)),
    }


def rewired() -> Numbers:
    model = tiny.vmoe(num_layers=1, placement=(0,))
    other = keras_vmoe.with_routing(model, num_selected=1, capacity_factor=0.4)
    masked = models.with_image_mask(model)
    inputs = {"images": tiny.images(5), "mask": np.arange(5) < 4}
    return {
        "with_routing": other.predict(tiny.images(5), verbose=0),
        "with_image_mask": masked.predict(inputs, verbose=0)[:4],
    }


def files() -> Numbers:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), dtype="uint8")
    classifier = models.Classifier(tiny.vmoe(num_layers=1, placement=(0,)), "abc")
    with tempfile.TemporaryDirectory() as folder:
        classifier.save(Path(folder) / "model.keras")
        again = keras.saving.load_model(Path(folder) / "model.keras")
    return {"saved": np.asarray(classifier(pixels)), "loaded": again.predict(pixels, verbose=0)}


CASES: dict[str, Callable[[], Numbers]] = {
    "grouped_matmul": grouped_matmul,
    "plans": plans,
    "losses": losses,
    **{f"layers/{name}": layer(name) for name in layer_cases.ALL},
    **{f"masked/{d}": masked_layer(d) for d in ("einsum", "gather", "grouped", "expert_choice")},
    "reference/top_k": reference("05_vmoe_token_k2_grads", training=True),
    "reference/grouped": reference("04_vmoe_map_k2", dispatch="grouped"),
    "reference/expert_choice": reference("04_vmoe_gap_expert_choice", dispatch="gather"),
    "reference/ensemble": reference("06_eee_token_k1_m2", training=True),
    "reference/soft": reference("06_soft_moe_gap_f32"),
    "fit/top_k": fit(importance_loss_weight=0.1),
    "fit/remat": fit(remat=True),
    "fit/expert_choice": fit(router="expert_choice"),
    "fit/limoe": pair_fit,
    "random_fit": random_fit,
    "half_precision": half_precision,
    "rewired": rewired,
    "files": files,
}


def compute(names: list[str] | None = None) -> Numbers:
    """The numbers of all cases, or of those named, as `case: quantity`."""
    found: Numbers = {}
    for name in names or CASES:
        begin = time.monotonic()
        found.update({f"{name}: {what}": value for what, value in CASES[name]().items()})
        print(f"{name} {time.monotonic() - begin:.1f} s", flush=True)
    return found


if __name__ == "__main__":
    assert keras.backend.backend() == os.environ["KERAS_BACKEND"]
    garbage.search_seldom()
    np.savez(sys.argv[1], **compute(sys.argv[2:]))
