"""One table of presets."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from typing import Any

from keras_vmoe.models.as_vit import AsViT
from keras_vmoe.models.base import VisionModel, require_known
from keras_vmoe.models.efficient_ensemble import EfficientEnsemble
from keras_vmoe.models.limoe import LIMoE
from keras_vmoe.models.mobile_vmoe import MobileVMoE
from keras_vmoe.models.vit import ViT
from keras_vmoe.models.vmoe import VMoE
from keras_vmoe.ops.validation import require

# Sources: ViT Ti and S: Touvron et al. 2020, arXiv 2012.12877 (DeiT), table 1, the sizes that Soft
# MoE uses as well; B, L, H: Dosovitskiy et al. 2020, table 1; V-MoE's own S and 15B: Riquelme et
# al. 2021, arXiv 2106.05974, table 8 and section 3.3.
_SIZES = {
    "ti": {"num_layers": 12, "width": 192, "mlp_dim": 768, "num_heads": 3},
    "s": {"num_layers": 12, "width": 384, "mlp_dim": 1536, "num_heads": 6},
    "vmoe_s": {"num_layers": 8, "width": 512, "mlp_dim": 2048, "num_heads": 8},
    "b": {"num_layers": 12, "width": 768, "mlp_dim": 3072, "num_heads": 12},
    "l": {"num_layers": 24, "width": 1024, "mlp_dim": 4096, "num_heads": 16},
    "h": {"num_layers": 32, "width": 1280, "mlp_dim": 5120, "num_heads": 16},
    "15b": {"num_layers": 48, "width": 1408, "mlp_dim": 6400, "num_heads": 16},
}
_PATCHES = {"ti": (16,), "s": (32, 16, 14), "b": (32, 16), "l": (32, 16), "h": (14,)}
# Last blocks that are sparse in the Soft MoE paper, by size; experts there, by patch.
_SOFT_BLOCKS = {"ti": 6, "s": 6, "b": 6, "l": 12, "h": 16}
_SOFT_EXPERTS = {32: 128, 16: 128, 14: 256}


def _table() -> dict[str, tuple[type[VisionModel], dict[str, Any]]]:
    table: dict[str, tuple[type[VisionModel], dict[str, Any]]] = {}
    for size, patches in _PATCHES.items():
        for patch in patches:
            base = dict(_SIZES[size], patch_size=patch)
            table[f"vit_{size}{patch}"] = (ViT, base)
            soft = dict(
                base,
                pooling="gap",
                qk_norm=True,
                placement=f"final_{_SOFT_BLOCKS[size]}",
                num_experts=_SOFT_EXPERTS[patch],
            )
            table[f"softmoe_{size}{patch}"] = (VMoE, dict(soft, router="soft", num_slots=1))
            table[f"expertchoice_{size}{patch}"] = (VMoE, dict(soft, router="expert_choice"))
    for patch in (32, 16):
        table[f"vit_vmoe_s{patch}"] = (ViT, dict(_SIZES["vmoe_s"], patch_size=patch))
    for name, size, patch in (
        ("ti16", "ti", 16),
        ("s32", "vmoe_s", 32),
        ("s16", "vmoe_s", 16),
        ("b32", "b", 32),
        ("b16", "b", 16),
        ("l32", "l", 32),
        ("l16", "l", 16),
        ("h14", "h", 14),
        ("15b", "15b", 14),
    ):
        table[f"vmoe_{name}"] = (
            VMoE,
            dict(_SIZES[size], patch_size=patch, placement="every_2", num_experts=32),
        )
    # The ensemble that was released: fewer experts than V-MoE's, in the last odd blocks.
    ensemble = {"placement": "last_2", "num_experts": 8, "num_members": 2, "num_selected": 1}
    table["eee_s32"] = (EfficientEnsemble, {**_SIZES["vmoe_s"], "patch_size": 32, **ensemble})
    for name, arguments in _limoe().items():
        table[f"limoe_{name}"] = (LIMoE, arguments)
    for name, arguments in _mobile().items():
        table[f"mobile_vmoe_{name}"] = (MobileVMoE, arguments)
    for name, arguments in _as_vit().items():
        table[f"asvit_{name}"] = (AsViT, arguments)
    return table


def _as_vit() -> dict[str, dict[str, Any]]:
    """As-ViT's presets: Chen et al. 2022, arXiv 2202.11921, table 4. Only L's genotype is
    published; S's and B's follow from it and from their published sizes, as do the position table
    and the norm behind merging, which the layout that searches measure does not have."""
    genotypes = {
        "s": "8,2,3,3|4,1,2,1|4,1,4,4|4,1,6,2|32,88",
        "b": "8,2,3,3|4,1,2,1|4,1,4,5|4,1,6,2|32,116",
        "l": "8,2,3,5|4,1,2,2|4,1,4,5|4,1,6,2|32,180",
    }
    final = {"pos_emb": "absolute", "merge_norm": "post"}
    return {
        **{size: {"genotype": genes, **final} for size, genes in genotypes.items()},
        **{f"{size}_search": {"genotype": genes} for size, genes in genotypes.items()},
    }


def _mobile() -> dict[str, dict[str, Any]]:
    """Mobile V-MoE's presets: Daxberger et al. 2023, arXiv 2309.04354, figure 3 and table 2; the
    last is the base of its ablations."""
    presets = {
        f"{layers}x{width}": {
            "num_layers": layers,
            "width": width,
            "mlp_dim": 4 * width,
            "num_heads": heads,
            "patch_size": 32,
        }
        for width, heads in ((384, 6), (192, 3), (96, 3), (64, 2))
        for layers in (12, 9, 6)
    }
    return {**presets, "deit_ti16": dict(_SIZES["ti"], patch_size=16)}


def _limoe() -> dict[str, dict[str, Any]]:
    """LIMoE's presets: Mustafa et al. 2022, arXiv 2206.02770, section 3 and appendix. That H has
    12 sparse blocks is what its published sizes (675M a token, 5.6B) say; which, is a guess."""
    presets = {
        f"{name}{patch}": dict(_SIZES[size], patch_size=patch, num_experts=32)
        for name, size, patch in (
            *(("s", "vmoe_s", 32), ("s", "vmoe_s", 16), ("b", "b", 32), ("b", "b", 16)),
            *(("l", "l", 16), ("h", "h", 14)),
        )
    }
    presets["h14"]["placement"] = tuple(range(9, 32, 2))
    # For tests and first steps.
    presets["ti8"] = {
        "image_size": 32,
        "patch_size": 8,
        "num_layers": 4,
        "width": 64,
        "mlp_dim": 256,
        "num_heads": 4,
        "num_experts": 4,
        "vocabulary_size": 512,
    }
    return presets


VARIANTS = _table()


def list_variants(prefix: str = "") -> list[str]:
    """The ids of all presets, or of those that begin with `prefix`.

    Example:

    >>> import keras_vmoe
    >>> keras_vmoe.list_variants("vmoe_l")
    ['vmoe_l16', 'vmoe_l32']
    """
    return sorted(name for name in VARIANTS if name.startswith(prefix))


def require_variant(name: str, known: Sequence[str]) -> None:
    """Raises a `ValueError` that lists the ids and names the nearest unless `name` is one.

    Args:
        name: an id.
        known: all ids.
    """
    close = difflib.get_close_matches(name, known, n=1)
    require(
        name in known,
        f"variant must be one of {', '.join(sorted(known))}. Received: variant={name!r}"
        + (f"; did you mean {close[0]!r}?" if close else ""),
    )


def variant(name: str) -> tuple[type[VisionModel], dict[str, Any]]:
    """The class and the arguments of a preset.

    Raises:
        ValueError: an unknown id; the message lists those that there are.
    """
    require_variant(name, list_variants())
    cls, arguments = VARIANTS[name]
    return cls, dict(arguments)


def merge_arguments(
    cls: type[VisionModel], arguments: dict[str, Any], overrides: dict[str, Any]
) -> dict[str, Any]:
    """Preset arguments with overrides laid over them, checked against the class."""
    require_known(cls, overrides)
    return {**arguments, **overrides}


def variant_arguments(
    name: str, cls: type[VisionModel], overrides: dict[str, Any]
) -> dict[str, Any]:
    """The arguments of a preset of `cls` with overrides laid over them."""
    identity = _id(name, cls)
    if identity not in VARIANTS:
        require_variant(name, [known for known, (own, _) in VARIANTS.items() if own is cls])
    name = identity
    own, arguments = variant(name)
    require(
        own is cls,
        f"variant {name!r} is of {own.__name__}, not of {cls.__name__}. "
        f"Received: variant={name!r}; use {own.__name__}.from_variant",
    )
    return merge_arguments(cls, {**arguments, "name": name}, overrides)


def _id(name: str, cls: type[VisionModel]) -> str:
    """The id of what papers call "B/16" or "12x192", among the presets of a class."""
    short = re.fullmatch(r"([A-Za-z]+)/(\d+)", name)
    if short:
        return f"{cls.__name__}_{short[1]}{short[2]}".lower()
    return f"mobile_vmoe_{name}" if re.fullmatch(r"\d+x\d+", name) else name


def from_variant(name: str, **overrides: Any) -> VisionModel:
    """Builds a preset of any class.

    Args:
        name: an id of `keras_vmoe.list_variants()`.
        **overrides: any argument of the preset's class.

    Raises:
        ValueError: an unknown id or argument.

    Example:

    >>> from keras_vmoe import models
    >>> model = models.from_variant("vit_ti16", image_size=32, num_classes=10, num_layers=1)
    >>> model.name, model.output_shape
    ('vit_ti16', (None, 10))
    """
    return variant(name)[0].from_variant(name, **overrides)
