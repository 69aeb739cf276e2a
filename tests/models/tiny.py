"""Models so small that every test can afford one."""

from typing import Any

import numpy as np

from keras_vmoe import models

ARGUMENTS = {
    "image_size": 16,
    "patch_size": 8,
    "num_layers": 2,
    "width": 8,
    "mlp_dim": 8,
    "num_heads": 2,
    "num_classes": 3,
    "head_kernel_initializer": "glorot_uniform",
}


# Arguments that models of pairs do not have.
HEAD = ("num_classes", "head_kernel_initializer")


def vit(**overrides: Any) -> models.ViT:
    return models.ViT(**{**ARGUMENTS, **overrides})


def vmoe(**overrides: Any) -> models.VMoE:
    """Two sparse blocks of four experts, crowded enough for tokens to be dropped."""
    sparse = {"num_experts": 4, "placement": (0, 1), "images_per_group": 3}
    if overrides.get("router", "top_k") != "soft":
        sparse.update(capacity_factor=0.8, capacity_multiple_of=1)
    model = models.VMoE(**{**ARGUMENTS, **sparse, **overrides})
    spread(model)
    return model


def ensemble(**overrides: Any) -> models.EfficientEnsemble:
    """Three members of two experts each in one sparse block, crowded as that of `vmoe`."""
    arguments = {"num_members": 3, "num_experts": 6, "placement": (1,), "images_per_group": 3}
    arguments.update(capacity_factor=0.8, capacity_multiple_of=1)
    model = models.EfficientEnsemble(**{**ARGUMENTS, **arguments, **overrides})
    spread(model)
    return model


def spread(model: Any) -> None:
    """Makes experts differ and routers decided, as training would."""
    rng = np.random.default_rng(0)
    for variable in model.trainable_variables:
        variable.assign(0.5 * rng.normal(size=variable.shape))


def images(count: int, seed: int = 0, side: int = 16) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.uniform(-1, 1, (count, side, side, 3)).astype("float32")


VOCABULARY, TEXT_LENGTH = 11, 5


def limoe(**overrides: Any) -> models.LIMoE:
    """A sparse block of four experts for images of four patches and texts of five tokens."""
    arguments = {
        **{
            n: v
            for n, v in ARGUMENTS.items()
            if n not in ("num_classes", "head_kernel_initializer")
        },
        "vocabulary_size": VOCABULARY,
        "text_length": TEXT_LENGTH,
        "placement": (1,),
        "num_experts": 4,
        "pairs_per_group": 3,
        "capacity_multiple_of": 1,
        **overrides,
    }
    model = models.LIMoE(**arguments)
    spread(model)
    return model


def pairs(count: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Images, and texts of one token or more that end with a 1."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(2, VOCABULARY, (count, TEXT_LENGTH))
    lengths = rng.integers(1, TEXT_LENGTH + 1, count)
    tokens[np.arange(TEXT_LENGTH) >= lengths[:, None]] = 1
    return {"images": images(count, seed), "tokens": tokens.astype("int32")}
