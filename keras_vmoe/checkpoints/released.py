"""Models from files of weights: what the arrays tell, and what they do not."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import keras

from keras_vmoe import models
from keras_vmoe.checkpoints.architecture import infer_arguments
from keras_vmoe.checkpoints.errors import CheckpointError
from keras_vmoe.checkpoints.hub import is_hub_preset, load_hub_model, read_hub_model
from keras_vmoe.checkpoints.sources import open_arrays
from keras_vmoe.checkpoints.transfer import Transfer, transfer
from keras_vmoe.checkpoints.vmoe_files import Progress, VMoECheckpoint
from keras_vmoe.models.base import argument_names
from keras_vmoe.models.vit import image_shape
from keras_vmoe.ops.validation import require

# What the configs of the released checkpoints say beside the arrays, by the name of their files
# in the bucket gs://vmoe_checkpoints.
_FROM_SCRATCH = {"capacity_factor": 1.05, "eval_capacity_factor": 4.0}
_FINE_TUNED = {"capacity_factor": 1.5}
RELEASED: dict[str, dict[str, float]] = {
    "vmoe_s32_last2_ilsvrc2012_randaug_light1": _FROM_SCRATCH,
    "vmoe_s32_last2_ilsvrc2012_randaug_light1_ft_ilsvrc2012": _FINE_TUNED,
    "vmoe_s32_last2_ilsvrc2012_randaug_medium": _FROM_SCRATCH,
    "vmoe_b16_imagenet21k_randaug_strong": {"capacity_factor": 1.05},
    "vmoe_b16_imagenet21k_randaug_strong_ft_ilsvrc2012": _FINE_TUNED,
    "eee_s32_last2_ilsvrc2012": {"capacity_factor": 1.05},
    "eee_s32_last2_ilsvrc2012_ft_cifar100": {**_FINE_TUNED, "images_per_group": 128},
}
#: As the file has it.
STORED = "stored"


class Loaded(NamedTuple):
    """What `load` gives.

    Attributes:
        model: the model, filled.
        transfer: which array went where.
    """

    model: keras.Model
    transfer: Transfer


def load_model(
    source: str | os.PathLike[str] | Mapping[str, Any] | keras.Model,
    image_size: int | tuple[int, int] | None = None,
    num_classes: int | str | None = STORED,
    num_selected: int | None = None,
    capacity_factor: float | None = None,
    eval_capacity_factor: float | None = None,
    batch_priority: bool = False,
    images_per_group: int | None = None,
    fresh: Sequence[str] = (),
    progress: bool | Progress = True,
    **overrides: Any,
) -> keras.Model:
    """Builds the model that a file holds the weights of, and fills it.

    Width, depth, heads, MLPs, experts, sparse blocks, members of an ensemble, `pre_logits` and the
    head are read off the arrays. What arrays do not tell are arguments, whose defaults are those of
    the released configs.

    Args:
        source: prefix of a released V-MoE checkpoint (`"vmoe_b16_imagenet21k_randaug_strong"`), a
            ViT's `.npz` file of google-research/vision_transformer, a ViT of Hugging Face or
            KerasHub (`"hf://google/vit-base-patch16-224"`, the folder of a preset, or a `keras_hub`
            model; `pip install 'keras-vmoe[hub]'`), or arrays by the reference's names.
        image_size: side of the images, pixels, or (height, width); positions are resized linearly
            with aligned corners. `None` takes the one that the positions are of.
        num_classes: as stored; another number makes a new head, `None` leaves it out.
        num_selected: choices per token (k); `None` is 2, and 1 in an ensemble.
        capacity_factor: slots per assignment; `None` is that of the released config of this file
            name (1.05, or 1.5 after fine-tuning), else 1.05.
        eval_capacity_factor: the same when not training; `None` is that of the released config of
            this file name (4.0 for S/32 from scratch), else `capacity_factor`.
        batch_priority: Batch Prioritized Routing; the released configs have it off.
        images_per_group: images routed together; `None` is 8 (128 for E3 on CIFAR-100).
        fresh: regular expressions; variables whose path begins with one keep initial values.
        progress: as of `VMoECheckpoint`.
        **overrides: `router="expert_choice"` where the file is of such a model, which arrays do not
            tell from top-k; any other argument of `ViT` or `VMoE`, such as
            `dtype="mixed_bfloat16"`, `representation_size=None` (leaves `pre_logits` out) or
            `dispatch_dtype="bfloat16"` (rounds tokens on their way to experts, as the reference
            does on TPU).

    Returns:
        A `ViT`, `VMoE` or `EfficientEnsemble` that takes images in [-1, 1].

    Raises:
        CheckpointError: files that are missing, damaged, or not of such a model.
        ValueError: arguments that do not fit, and arrays without a place in the model.

    Example:

    >>> import tempfile
    >>> from keras_vmoe import checkpoints, models
    >>> small = models.from_variant("vmoe_s32", num_classes=10, num_experts=2, num_layers=2)
    >>> prefix = tempfile.mkdtemp() + "/small"
    >>> checkpoints.save_vmoe(prefix, checkpoints.reference_variables(small))
    >>> model = checkpoints.load_model(prefix, image_size=96, num_classes=5)
    >>> model.output_shape, model.arguments["placement"]
    ((None, 5), (1,))

    Reference: google-research/vmoe, "Pre-trained and fine-tuned checkpoints".
    """
    given = {
        "image_size": image_size,
        "num_classes": num_classes,
        "num_selected": num_selected,
        "capacity_factor": capacity_factor,
        "eval_capacity_factor": eval_capacity_factor,
        "batch_priority": batch_priority,
        "images_per_group": images_per_group,
        **overrides,
    }
    return load(source, given, fresh, progress).model


def load(
    source: str | os.PathLike[str] | Mapping[str, Any] | keras.Model,
    given: Mapping[str, Any],
    fresh: Sequence[str] = (),
    progress: bool | Progress = True,
    strict: bool = True,
) -> Loaded:
    """`load_model` with the arguments as a mapping, and a list of what went where.

    Args:
        source, fresh, progress: as of `load_model`.
        given: the other arguments.
        strict: whether arrays and variables without a partner are an error.

    Returns:
        The model, and a `Transfer`.

    Raises:
        CheckpointError, ValueError: as of `load_model`.

    Example:

    >>> from keras_vmoe import checkpoints, models
    >>> arrays = checkpoints.reference_variables(models.from_variant("vit_ti16", num_layers=1))
    >>> model, done = checkpoints.load(arrays, {"num_classes": 3})
    >>> model.output_shape, done.fresh
    ((None, 3), ('head/kernel', 'head/bias'))
    """
    place, arrays, told = _open(source, progress)
    try:
        stored = infer_arguments(arrays) | told
    except CheckpointError as error:
        raise CheckpointError(f"{place}: {error}") from None
    arguments = _arguments(stored, given, Path(place).name.removesuffix(".index"))
    model = _model_class(arguments)(**arguments)
    made_anew = [*fresh]
    if arguments["num_classes"] != stored["num_classes"]:
        made_anew.append("head/")
    if arguments.get("representation_size") != stored["representation_size"]:
        made_anew += ["pre_logits/", "head/"]
    try:
        return Loaded(model, transfer(model, arrays, made_anew, strict, _grid(stored)))
    except ValueError as error:
        raise CheckpointError(f"{place}: {error}") from None
    finally:
        if isinstance(arrays, VMoECheckpoint):
            arrays.end_progress()


def _grid(stored: Mapping[str, Any]) -> tuple[int, int] | None:
    """Rows and columns of patches of the stored positions, where they are known."""
    if "image_size" not in stored:
        return None
    height, width = image_shape(stored["image_size"])
    rows, columns = image_shape(stored["patch_size"])
    return height // rows, width // columns


def _open(source: Any, progress: bool | Progress) -> tuple[str, Mapping[str, Any], dict[str, Any]]:
    """The name of a source, its arrays, and arguments that it tells beside them."""
    if isinstance(source, Mapping):
        return "the arrays", source, {}
    if isinstance(source, keras.Model):
        return f"model {source.name!r}", *read_hub_model(source)
    place = os.fspath(source)
    if is_hub_preset(place):
        return place, *read_hub_model(load_hub_model(place))
    return place, open_arrays(place, progress), {}


def _model_class(arguments: Mapping[str, Any]) -> type[keras.Model]:
    if "num_members" in arguments:
        return models.EfficientEnsemble
    return models.VMoE if "placement" in arguments else models.ViT


def _arguments(stored: dict[str, Any], given: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The arguments of the model: those of the arrays, of the released configs, the given ones."""
    given = dict(given)
    if given.get("num_classes") == STORED:
        del given["num_classes"]
    if given.get("image_size") is None:
        given.pop("image_size", None)
        if "image_size" not in stored:
            raise CheckpointError(
                "image_size must be given: the positions in the file do not tell of which it is"
            )
    optional = ("num_selected", "capacity_factor", "eval_capacity_factor", "images_per_group")
    given = {n: v for n, v in given.items() if v is not None or n not in optional}
    arguments = dict(stored)
    if "placement" in stored and arguments.get("router", given.get("router")) in (None, "top_k"):
        arguments |= {"num_selected": 1 if "num_members" in stored else 2, "batch_priority": False}
        arguments |= RELEASED.get(name, {"capacity_factor": 1.05})
    elif not given.get("batch_priority"):
        given.pop("batch_priority", None)
    cls = _model_class(stored)
    unknown = sorted(given.keys() - set(argument_names(cls)))
    require(
        not unknown,
        f"{cls.__name__} has no argument {', '.join(unknown)}. It has: "
        f"{', '.join(argument_names(cls))}",
    )
    return arguments | given
