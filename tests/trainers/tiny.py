"""A run so small that a test can afford it."""

from pathlib import Path

from keras_vmoe.trainers import cli

TINY_VMOE = (
    "VMoE.num_layers=1",
    "VMoE.placement=(0,)",
    "VMoE.width=8",
    "VMoE.mlp_dim=16",
    "VMoE.num_heads=2",
    "VMoE.num_experts=4",
)
TINY_ENSEMBLE = (
    "EfficientEnsemble.num_layers=1",
    "EfficientEnsemble.placement=(0,)",
    "EfficientEnsemble.width=8",
    "EfficientEnsemble.mlp_dim=16",
    "EfficientEnsemble.num_heads=2",
    "EfficientEnsemble.num_experts=4",
)
TINY_LIMOE = (
    "LIMoE.patch_size=16",
    "LIMoE.num_layers=1",
    "LIMoE.placement=(0,)",
    "LIMoE.width=8",
    "LIMoE.mlp_dim=16",
    "LIMoE.num_heads=2",
    "LIMoE.num_experts=4",
)
TINY_VIT = ("ViT.num_layers=1", "ViT.width=8", "ViT.mlp_dim=16", "ViT.num_heads=2")
SHORT = (
    "train.batch_size=16",
    "train.log_every=2",
    "train.eval_every=4",
    "train.steps=6",
    "adamw.ema_momentum=0.5",
    "train.routing_images=0",
)
# The picture takes a fifth of the time of such a run: bound where a kind of run has to draw it.
PICTURE = "train.routing_images=4"


def arguments(
    workdir: Path, *bindings: str, gin_file: str = "runs/quickstart.gin", tiny=TINY_VMOE + SHORT
) -> list[str]:
    """Returns the words after `keras-vmoe` for a tiny run."""
    words = [f"--gin_bindings={binding}" for binding in (*tiny, *bindings)]
    return ["train", f"--gin_file={gin_file}", f"--workdir={workdir}", *words]


def train(workdir: Path, *bindings: str, **options) -> int:
    """Trains in this process and returns the exit code."""
    return cli.main(arguments(workdir, *bindings, **options))
