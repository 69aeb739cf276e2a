"""The updates of each optimizer on the backend at hand: `python -m … FILE.npz`."""

import sys

import keras
import numpy as np

from keras_vmoe.trainers import optimizers
from tests.trainers.optimizers.variables import arrays, variables

MAKERS = {
    "adamw": optimizers.AdamW,
    "momentum": optimizers.Momentum,
    "adafactor": lambda *args, **options: optimizers.Adafactor(
        *args, min_dim_size_to_factor=4, **options
    ),
}
# Small and large gradients, so that some are clipped.
GRADIENTS = [arrays(1 + i, scale=10.0 ** (i % 3 - 1)) for i in range(6)]


def stepper(optimizer, of):
    """A compiled step on either backend."""
    optimizer.build(of)
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        apply = tf.function(lambda gradients: optimizer.apply(gradients, of), autograph=False)
        return lambda gradients: apply([tf.constant(gradient) for gradient in gradients])
    import jax

    apply = jax.jit(optimizer.stateless_apply)

    def step(gradients):
        after = apply([v.value for v in optimizer.variables], gradients, [v.value for v in of])
        for group, values in zip((of, optimizer.variables), after, strict=True):
            for variable, value in zip(group, values, strict=True):
                variable.assign(value)

    return step


def trail(name, accumulate):
    """All values after each step: weights and the optimizer's own."""
    optimizer = MAKERS[name](
        optimizers.linear(0.1, 6 // accumulate, warmup_steps=2, final=0.02),
        weight_decay=(("head/kernel", 0.3), (".*kernel", 0.1)),
        freeze=("head/bias",),
        global_clipnorm=2.0,
        gradient_accumulation_steps=accumulate,
        ema_momentum=0.7,
    )
    of = variables(arrays(0))
    step, found = stepper(optimizer, of), {}
    for i, gradients in enumerate(GRADIENTS):
        step([gradients[v.path] for v in of])
        for place, variable in enumerate((*of, *optimizer.variables)):
            key = f"{name} {accumulate} step {i} {place} {variable.name}"
            found[key] = keras.ops.convert_to_numpy(variable)
    return found


def main(path):
    np.savez(path, **{k: v for name in MAKERS for n in (1, 3) for k, v in trail(name, n).items()})


if __name__ == "__main__":
    main(sys.argv[1])
