"""The layers that the harness runs, by the file they live in."""

import keras
import numpy as np

from keras_vmoe import layers
from tests.layers.harness import LayerCase

TOKENS = (3, 5, 8)


def top_k(**arguments):
    return layers.TopKRouter(**{"num_experts": 4, "num_selected": 2, "noise_std": 0.0, **arguments})


def config(layer):
    """As a config, so that no two layers of a test share a sublayer."""
    return keras.saving.serialize_keras_object(layer)


def moe(router, **arguments):
    return {"router": config(router), "hidden_dim": 6, "images_per_group": 2, **arguments}


def sparse(router, **arguments):
    return config(layers.MoEMLP(**moe(router, **arguments)))


ROUTERS = {
    "top_k": LayerCase(
        layers.TopKRouter,
        {
            "num_experts": 4,
            "num_selected": 2,
            "gshard_loss_weight": 0.1,
            "z_loss_weight": 0.1,
            "priority_score": "sum",
            "renormalise_gates": True,
            "seed": 3,
        },
        TOKENS,
    ),
    "expert_choice": LayerCase(
        layers.ExpertChoiceRouter, {"num_experts": 3, "eval_capacity_factor": 2.0}, TOKENS
    ),
    "expert_choice_renormalised": LayerCase(
        layers.ExpertChoiceRouter, {"num_experts": 3, "renormalise_gates": True}, TOKENS
    ),
    "soft": LayerCase(layers.SoftRouter, {"num_experts": 3, "num_slots": 2}, TOKENS),
    "soft_slots_by_capacity": LayerCase(layers.SoftRouter, {"num_experts": 3}, TOKENS),
}
ENSEMBLE = {
    "ensemble_top_k": LayerCase(
        layers.EnsembleTopKRouter,
        {"num_experts": 6, "num_members": 3, "num_selected": 2, "z_loss_weight": 0.1, "seed": 3},
        (3, 6, 8),
    ),
}
MEMBERS = {
    "repeat": LayerCase(layers.RepeatMembers, {"num_members": 3}, TOKENS),
    "split": LayerCase(layers.SplitMembers, {"num_members": 2}, (4, 5, 8)),
    "average": LayerCase(layers.EnsembleAverage, {"kind": "sigmoid"}, TOKENS),
}
# The last two tokens of each image are of its text.
MODALITY = {"modality": np.repeat([[0, 0, 0, 1, 1]], 3, axis=0).astype("int32")}


def modality_router(**arguments):
    return layers.ModalityRouter(
        **{
            "num_experts": 4,
            "local_entropy_loss_weights": {"text": 0.1},
            "global_entropy_loss_weights": {"image": 0.2, "text": 0.3},
            "soft_minimum_experts": {"image": 4},
            **arguments,
        }
    )


MODALITIES = {
    "router": LayerCase(
        layers.ModalityRouter, modality_router(seed=3).get_config(), TOKENS, MODALITY
    ),
    "moe": LayerCase(
        layers.MoEMLP,
        moe(modality_router(noise_std=0.0, balanced_importance=True)),
        TOKENS,
        MODALITY,
    ),
}
EXPERTS = {
    "shared": LayerCase(layers.ExpertMLP, {"num_experts": 3, "hidden_dim": 6}, TOKENS),
    "own": LayerCase(
        layers.ExpertMLP,
        {
            "num_experts": 3,
            "hidden_dim": 6,
            "activation": "tanh",
            "dropout_rate": 0.1,
            "shared_init": False,
            "kernel_initializer": "he_normal",
            "bias_initializer": "ones",
        },
        TOKENS,
    ),
}
MOE_MLPS = {
    **{
        dispatch: LayerCase(layers.MoEMLP, moe(top_k(), dispatch=dispatch), TOKENS)
        for dispatch in ("einsum", "gather", "grouped", "auto")
    },
    "noise_and_dropout": LayerCase(
        layers.MoEMLP,
        moe(top_k(noise_std=1.0), dropout_rate=0.2, shared_init=False, activation="tanh"),
        TOKENS,
    ),
    "rounded": LayerCase(
        layers.MoEMLP, moe(top_k(capacity_factor=0.5), dispatch_dtype="bfloat16"), TOKENS
    ),
    "expert_choice": LayerCase(
        layers.MoEMLP, moe(layers.ExpertChoiceRouter(3, noise_std=0.0)), TOKENS
    ),
    "soft": LayerCase(layers.MoEMLP, moe(layers.SoftRouter(3, num_slots=1)), TOKENS),
    **{
        f"ensemble_{dispatch}": LayerCase(
            layers.MoEMLP,
            moe(
                layers.EnsembleTopKRouter(4, 2, capacity_factor=0.7, noise_std=0.0),
                dispatch=dispatch,
            ),
            (6, 5, 8),
        )
        for dispatch in ("einsum", "gather", "grouped")
    },
}
TRANSFORMER = {
    "mlp": LayerCase(layers.MLP, {"hidden_dim": 6}, TOKENS),
    "mlp_dropout": LayerCase(
        layers.MLP, {"hidden_dim": 6, "dropout_rate": 0.3, "activation": "tanh"}, TOKENS
    ),
    "mlp_initializers": LayerCase(
        layers.MLP,
        {"hidden_dim": 6, "kernel_initializer": "he_normal", "bias_initializer": "ones"},
        TOKENS,
    ),
    "block": LayerCase(
        layers.EncoderBlock, {"num_heads": 2, "mlp": config(layers.MLP(6)), "qk_norm": True}, TOKENS
    ),
    "sparse_block": LayerCase(
        layers.EncoderBlock, {"num_heads": 2, "mlp": sparse(top_k())}, TOKENS
    ),
    "all_dropouts": LayerCase(
        layers.EncoderBlock,
        {
            "num_heads": 2,
            "mlp": sparse(top_k(noise_std=1.0), dropout_rate=0.1),
            "dropout_rate": 0.1,
            "attention_dropout_rate": 0.1,
            "stochastic_depth_rate": 0.1,
        },
        TOKENS,
    ),
    "remat": LayerCase(
        layers.EncoderBlock,
        {
            "num_heads": 2,
            "mlp": sparse(top_k(noise_std=1.0), dropout_rate=0.1),
            "dropout_rate": 0.1,
            "remat": True,
        },
        TOKENS,
    ),
}
EMBEDDING = {
    "patches": LayerCase(layers.PatchEmbedding, {"patch_size": 4, "width": 8}, (2, 9, 12, 3)),
    "oblong_patches": LayerCase(
        layers.PatchEmbedding, {"patch_size": (2, 3), "width": 4}, (2, 4, 6, 1)
    ),
    "class_token": LayerCase(layers.ClassToken, {}, TOKENS),
    **{
        f"{kind}_positions": LayerCase(
            layers.PositionEmbedding, {"kind": kind, "num_prefix_tokens": 1}, TOKENS
        )
        for kind in ("learned", "sincos2d", "none")
    },
    "oblong_positions": LayerCase(
        layers.PositionEmbedding, {"kind": "sincos2d", "grid": (1, 5), "temperature": 50.0}, TOKENS
    ),
}
MAP = (2, 6, 7, 8)


def window_block(**arguments):
    mlp = arguments.pop("mlp", None) or config(layers.MLP(6))
    return LayerCase(layers.WindowEncoderBlock, {"num_heads": 2, "mlp": mlp, **arguments}, MAP)


MAPS = {
    "patches": LayerCase(
        layers.OverlappingPatchEmbedding, {"kernel_size": 7, "width": 8}, (2, 9, 12, 3)
    ),
    "merging": LayerCase(layers.PatchMerging, {"kernel_size": 3, "width": 6}, (2, 5, 4, 3)),
    "merging_norm_behind": LayerCase(
        layers.PatchMerging, {"kernel_size": 4, "width": 6, "norm": "post"}, (2, 5, 4, 3)
    ),
    "positions": LayerCase(layers.MapPositionEmbedding, {"grid": (6, 7)}, MAP),
    "other_positions": LayerCase(layers.MapPositionEmbedding, {"grid": (4, 3)}, MAP),
}
WINDOW_BLOCKS = {
    "splits": window_block(splits=2),
    "window": window_block(window_size=(3, 4), norm="identity", num_heads=3),
    "sparse_window": window_block(splits=3, mlp=sparse(top_k())),
    "all_window_dropouts": window_block(
        mlp=sparse(top_k(noise_std=1.0), dropout_rate=0.1),
        splits=2,
        dropout_rate=0.1,
        attention_dropout_rate=0.1,
        stochastic_depth_rate=0.1,
        remat=True,
        kernel_initializer="he_normal",
    ),
}
POOLING = {
    "first": LayerCase(layers.TokenPooling, {"kind": "first"}, TOKENS),
    "last": LayerCase(layers.TokenPooling, {"kind": "last"}, TOKENS),
    "mean": LayerCase(layers.TokenPooling, {"kind": "mean"}, TOKENS),
    "attention": LayerCase(layers.AttentionPooling, {"num_heads": 2, "mlp_dim": 6}, TOKENS),
    "attention_qk_norm": LayerCase(
        layers.AttentionPooling,
        {"num_heads": 2, "mlp_dim": 6, "qk_norm": True, "activation": "tanh"},
        TOKENS,
    ),
}
ALL = {
    f"{room}/{name}": case
    for room, cases in {
        "maps": MAPS,
        "window_block": WINDOW_BLOCKS,
        "routers": ROUTERS,
        "ensemble_router": ENSEMBLE,
        "modality_router": MODALITIES,
        "members": MEMBERS,
        "experts": EXPERTS,
        "moe_mlp": MOE_MLPS,
        "transformer": TRANSFORMER,
        "embedding": EMBEDDING,
        "pooling": POOLING,
    }.items()
    for name, case in cases.items()
}


@keras.saving.register_keras_serializable(package="tests")
class RoutedImages(keras.layers.Layer):
    """A router of images, and experts that follow it."""

    def __init__(self, router, mlp, **kwargs):
        super().__init__(**kwargs)
        self.router = keras.saving.deserialize_keras_object(router)
        self.mlp = keras.saving.deserialize_keras_object(mlp)
        if self.mlp.dtype_policy != self.dtype_policy:
            self.mlp = type(self.mlp).from_config(
                {**self.mlp.get_config(), "dtype": self.dtype_policy}
            )

    def build(self, shape):
        # Sublayers that come from a config of built ones are built.
        for layer, own in ((self.router, (shape[0], shape[-1])), (self.mlp, shape)):
            if not layer.built:
                layer.build(own)

    def call(self, inputs, training=False):
        return self.mlp(inputs, plan=self.router(inputs[:, 0]), training=training)

    def get_config(self):
        return {**super().get_config(), "router": config(self.router), "mlp": config(self.mlp)}


IMAGE_ROUTER = {
    "plain": LayerCase(layers.ImageRouter, {"num_experts": 4}, (3, 8)),
    "bias": LayerCase(
        layers.ImageRouter,
        {"num_experts": 5, "num_selected": 2, "use_bias": True, "gate": "straight_through"},
        (3, 8),
    ),
    "renormalised": LayerCase(
        layers.ImageRouter,
        {"num_experts": 4, "num_selected": 2, "renormalise_gates": True},
        (3, 8),
    ),
}


def routed_images(num_selected=1, **arguments):
    router = layers.ImageRouter(2, num_selected)
    return {"router": config(router), "mlp": config(layers.ImageMoEMLP(2, 6, **arguments))}


IMAGE_MOE = {
    "auto": LayerCase(RoutedImages, routed_images(2), TOKENS),
    "kernels": LayerCase(RoutedImages, routed_images(2, dispatch="kernels"), TOKENS),
    "einsum": LayerCase(
        RoutedImages, routed_images(2, dispatch="einsum", dropout_rate=0.1), TOKENS
    ),
}
