"""`keras-vmoe convert`: weights of other implementations into a Keras model, and back."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags

from keras_vmoe import tables
from keras_vmoe.trainers import command_line
from keras_vmoe.trainers.errors import ListError, UsageError, warn

if TYPE_CHECKING:
    import keras

    from keras_vmoe import checkpoints

_SYNOPSIS = "convert SOURCE TARGET [NAME=VALUE]..."
_TEXT = """
Builds the model that a file holds the weights of, fills it, saves it, and prints which array went
where. Arrays without a place in the model, and variables without an array, are an error.

SOURCE is one of
  PREFIX        a released V-MoE checkpoint: PREFIX.index and PREFIX.data-00000-of-...
  FILE.npz      a ViT of google-research/vision_transformer, or the V-MoE reference's names
  hf://NAME     a ViT of Hugging Face or KerasHub, or the folder of a KerasHub preset
                (pip install 'keras-vmoe[hub]')
  FILE.keras    a model of this package, taken as it is; one with class names keeps them in
                another FILE.keras (--class_names gives it others)
TARGET is one of
  FILE.keras    for keras.models.load_model, after `import keras_vmoe`
  FILE.npz      a dense ViT as google-research/vision_transformer reads it
  PREFIX.index  a checkpoint as google-research/vmoe reads it

NAME=VALUE are arguments of the model that the arrays do not tell, or that shall be others:
image_size (positions are resized), num_classes (a new head; None leaves it out), num_selected,
capacity_factor, batch_priority, images_per_group, dtype, ...

  keras-vmoe convert vmoe_s32_last2_ilsvrc2012_randaug_light1 vmoe_s32.keras
  keras-vmoe convert ViT-B_16.npz vit_b16.keras image_size=384 num_classes=10
"""
_TARGETS = (".keras", ".npz", ".index")
# Arguments that files of arrays do not hold, ...
_NOT_STORED = (
    "router num_selected capacity_factor eval_capacity_factor batch_priority images_per_group "
    "renormalise_gates"
)
# ... and those by which models that come from such files differ.
_TOLD = (
    "image_size patch_size num_layers width mlp_dim num_heads num_classes pooling placement "
    f"num_experts num_members {_NOT_STORED}"
)


def _flags() -> flags.FlagValues:
    values = command_line.new_flags()
    flags.DEFINE_boolean(
        "allow_unmatched",
        False,
        "Leave out arrays without a place, and variables without an array as they are.",
        flag_values=values,
    )
    flags.DEFINE_boolean("overwrite", False, "Replace TARGET.", flag_values=values)
    flags.DEFINE_string(
        "class_names",
        None,
        "A text file of a class name a line: FILE.keras then takes raw images and names classes.",
        flag_values=values,
    )
    flags.DEFINE_boolean(
        "table", True, "Print which array went where; --notable leaves it out.", flag_values=values
    )
    return values


def main(argv: Sequence[str]) -> int:
    """Runs `keras-vmoe convert`.

    Args:
        argv: the words after `convert`.

    Returns:
        The exit code.

    Raises:
        UsageError: a wrong command line.
        FileExistsError: a target that is there already.
        ValueError: a source that cannot be read, or does not fit the model that is asked for.
    """
    values = _flags()
    words = command_line.parse(values, argv, "convert")
    if values.help:
        print(command_line.help_text(values, _SYNOPSIS, _TEXT), end="")
        return 0
    if len(words) < 2 or any("=" in word for word in words[:2]):
        raise UsageError("convert: give SOURCE and TARGET; see keras-vmoe convert --help")
    source, target = words[0], Path(words[1]).expanduser()
    overrides = dict(command_line.parse_override("convert", word) for word in words[2:])
    _check_target(target, values)
    names = _class_names(values.class_names)
    keras_file = source.endswith(".keras")
    model = (_keras_model if keras_file else _converted)(source, overrides, values)
    _save(model, target, names, values.overwrite)
    print(f"wrote  {target}  {model.count_params():,} parameters")
    return 0


def _check_target(target: Path, values: flags.FlagValues) -> None:
    if target.suffix not in _TARGETS:
        raise UsageError(
            f"convert: TARGET must end in {', '.join(_TARGETS[:-1])} or {_TARGETS[-1]}. "
            f"Received: {str(target)!r}"
        )
    if target.exists() and not values.overwrite:
        raise FileExistsError(f"{target} exists; give another TARGET, or --overwrite")
    if not target.parent.is_dir():
        raise FileNotFoundError(f"{target}: there is no folder {str(target.parent)!r}")
    if values.class_names and target.suffix != ".keras":
        raise UsageError("convert: --class_names is for a TARGET that ends in .keras")


def _class_names(path: str | None) -> list[str] | None:
    if path is None:
        return None
    file = Path(path).expanduser()
    if not file.is_file():
        raise FileNotFoundError(f"--class_names={path}: there is no such file")
    lines = file.read_text().splitlines()
    names = [line.strip() for line in lines if line.strip()]
    twice = sorted({name for name in names if names.count(name) > 1})
    if not names or twice:
        found = f"{twice[0]!r} twice" if twice else "none"
        raise ValueError(f"--class_names={path} must hold a name a line, all different: {found}")
    return names


def _keras_model(path: str, overrides: dict[str, Any], values: flags.FlagValues) -> keras.Model:
    if overrides:
        raise UsageError(
            f"convert: {', '.join(overrides)} cannot be changed in a .keras file; use "
            "keras_vmoe.checkpoints.transfer"
        )
    idle = [name for name in ("allow_unmatched", "table") if values[name].present]
    if idle:
        raise UsageError(
            f"convert: --{idle[0]} is for arrays by name; a .keras file is taken as it is, so "
            "leave it out"
        )
    file = Path(path).expanduser()
    if not file.is_file():
        raise FileNotFoundError(f"{path}: there is no such file")
    from keras_vmoe.trainers import keras_file

    return keras_file.load(file)


def _converted(source: str, overrides: dict[str, Any], values: flags.FlagValues) -> keras.Model:
    from keras_vmoe import checkpoints

    source, strict = os.path.expanduser(source), not values.allow_unmatched
    try:
        model, transfer = checkpoints.load(source, overrides, strict=strict)
    except ValueError as error:
        # It may list every name that has no partner.
        raise ListError(str(error)) from error
    if values.table:
        print("\n".join(tables.aligned(_rows(model, transfer), num_left=4)))
    print(f"{type(model).__name__}: {transfer}")
    print(f"arguments: {_told(model, _TOLD)}")
    if any(name.startswith("head/") for name in transfer.fresh):
        print("note: the head is untrained; fine-tune the model before it predicts")
    return model


def _rows(model: keras.Model, transfer: checkpoints.Transfer) -> list[tuple[str, ...]]:
    """A row for each array and each variable, the head first."""
    from keras_vmoe import checkpoints

    variables = checkpoints.reference_variables(model)
    rows = []
    for kind, names in (
        ("copied", transfer.copied),
        ("resized", transfer.resized),
        ("made anew", transfer.fresh),
        ("left out", transfer.left_out),
    ):
        for name in names:
            if kind == "left out" and name in variables:
                continue  # the row of the variable that was made anew says so
            variable = variables.get(name)
            shape = "" if variable is None else "x".join(map(str, variable.shape))
            rows.append((name, kind, "" if variable is None else variable.path, shape))
    return [("array", "", "variable", "shape"), *sorted(rows)]


def _told(model: keras.Model, names: str) -> str:
    """The arguments of a model that are given, of a list of names."""
    found = model.arguments
    return ", ".join(f"{n}={found[n]!r}" for n in names.split() if found.get(n) is not None)


def _save(model: keras.Model, target: Path, names: list[str] | None, overwrite: bool) -> None:
    from keras_vmoe import checkpoints, models

    classifier = model if isinstance(model, models.Classifier) else None
    if classifier is not None and (names is not None or target.suffix != ".keras"):
        model = classifier.model
    if classifier is not None and target.suffix != ".keras":
        warn(f"{target} holds weights alone; the class names and the preprocessing are left out")
    if target.suffix == ".npz":
        checkpoints.save_vit_npz(model, target, overwrite)
    elif target.suffix == ".index":
        checkpoints.save_vmoe(target.with_suffix(""), model, overwrite=overwrite)
        if told := _told(model, _NOT_STORED):
            print(f"not in the file: {told}; give what is no default as NAME=VALUE when it is read")
    else:
        value_range = (-1.0, 1.0) if classifier is None else classifier.value_range
        whole = model if names is None else models.Classifier(model, names, value_range)
        temporary = target.with_name(f".{target.stem}.{os.getpid()}.keras")
        try:
            whole.save(temporary)
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)
