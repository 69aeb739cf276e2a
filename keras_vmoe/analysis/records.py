"""Who went where: the routing of a model's MoE layers, per image, as NumPy arrays."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import keras
import numpy as np

from keras_vmoe import layers, models, ops
from keras_vmoe.layers.effects import RoutingCall
from keras_vmoe.ops.validation import require


@dataclasses.dataclass(frozen=True)
class RoutingRecord:
    """How one MoE layer routed some images; b images, t tokens each, e experts, k choices.

    Of a model of images and texts b are pairs, and t the tokens of both, those of the image first.

    Under expert choice and soft routing every token is shown with all experts, in their order:
    k = e.

    Attributes:
        layer: the layer's name.
        router: `"top_k"`, `"expert_choice"` or `"soft"`.
        expert: `[b, t, k]` int, the expert of each choice; top-k: best first.
        weight: `[b, t, k]`, the combine weight of each choice; where an expert did not choose the
            token, 0; soft: summed over the expert's slots.
        kept: `[b, t, k]` bool, whether the token got a slot of that expert; soft: always.
        slot: `[b, t, k]` int, the token's place at that expert, in its routing group; it is at
            least the capacity where a top-k choice was dropped, and -1 where an expert did not
            choose the token or slots are mixtures.
        gates: `[b, t, e]`, what the choice was made from; they sum to one over the experts.
        dispatch, combine: `[b, t, e, c]`, soft only, else `None`: the weight of the token in each
            slot, and of each slot in the token's output.
        losses: the layer's auxiliary losses, unweighted, by name, mean over all routing groups.
        slots: of each expert, in all routing groups together.
        mask: `[b, t]` bool, the tokens that count: none of a masked image, nothing behind the end
            of a text. `None`: all.
        modality: `[b, t]` int, each token's place in `modalities`; `None` where there is but one.
        modalities: the names of those that the router tells apart.
    """

    layer: str
    router: str
    expert: np.ndarray
    weight: np.ndarray
    kept: np.ndarray
    slot: np.ndarray
    gates: np.ndarray
    dispatch: np.ndarray | None = None
    combine: np.ndarray | None = None
    losses: Mapping[str, float] = dataclasses.field(default_factory=dict)
    slots: int = 0
    mask: np.ndarray | None = None
    modality: np.ndarray | None = None
    modalities: tuple[str, ...] = ()

    @property
    def num_experts(self) -> int:
        """Experts of the layer (e)."""
        return self.gates.shape[-1]

    @property
    def expert_shares(self) -> np.ndarray:
        """`[e]`, each expert's share of all kept choices; soft: of all combine weight."""
        amount = self.weight if self.router == "soft" else 1.0
        counts = np.bincount(
            self.expert.ravel(), np.ravel(self.kept * amount), minlength=self.num_experts
        )
        return counts / max(counts.sum(), np.finfo("float64").tiny)

    @property
    def dropped(self) -> float:
        """Share of the choices that got no slot; expert choice: of tokens that nobody took."""
        kept = self.kept.any(-1) if self.router == "expert_choice" else self.kept
        kept = kept if self.mask is None else kept[self.mask]
        return float(1.0 - kept.mean()) if kept.size else 0.0

    def of_modality(self, name: str) -> RoutingRecord:
        """The same of the tokens of one modality; pictures of patches are of those of the images.

        Args:
            name: one of `modalities`.

        Raises:
            ValueError: a modality that the record does not hold.
        """
        places = [] if self.modality is None else np.unique(self.modality[0])
        held = [self.modalities[place] for place in places]
        require(
            name in held,
            f"name must be one of the modalities of the record: {', '.join(held) or 'none'}. "
            f"Received: {name!r}",
        )
        # Every pair lies in the same way.
        own = self.modality[0] == self.modalities.index(name)
        arrays = {field: getattr(self, field)[:, own] for field in _arrays(self)}
        arrays["modality"] = np.zeros_like(arrays["modality"])
        return dataclasses.replace(self, modalities=(name,), **arrays)


def _arrays(record: RoutingRecord) -> list[str]:
    """The names of what a record holds for each token."""
    fields = (field.name for field in dataclasses.fields(record))
    return [name for name in fields if isinstance(getattr(record, name), np.ndarray)]


def routing_records(model: keras.Model, images: Any) -> dict[str, RoutingRecord]:
    """Runs a model and returns how each of its MoE layers routed the images.

    The model runs as in inference (no noise, the capacity factor of evaluation); its metrics are
    left alone. Each batch is routed as it comes: groups do not reach over its end.

    Args:
        model: any Keras model that holds MoE layers, at any depth.
        images: a batch, as an array or tensor `[b, height, width, channels]`; or an iterable of
            batches, such as a `tf.data.Dataset`, each an array, a dict with `"image"`, or a tuple
            that begins with either. A model of several inputs gets them by their names, such as
            `{"images", "tokens"}` of `LIMoE`, and nothing else of a dict.

    Returns:
        Layer name to record, in the order of the calls. A name that comes again within one run
        gets `_2`, `_3` and so on behind it. Each member of an ensemble has a record of its own, as
        it routes by itself: `..._member_0` and so on, with the experts of that member alone
        (expert i of member j is expert `j * e / m + i` of the layer).

    Raises:
        ValueError: a model without MoE layers, images that do not fit it, no images.

    Example:

    >>> import numpy as np
    >>> from keras_vmoe import analysis, models
    >>> model = models.VMoE(
    ...     image_size=32,
    ...     patch_size=8,
    ...     num_layers=2,
    ...     width=16,
    ...     mlp_dim=32,
    ...     num_heads=2,
    ...     num_experts=4,
    ...     num_selected=1,
    ... )
    >>> records = analysis.routing_records(model, np.zeros((3, 32, 32, 3), "float32"))
    >>> record = records["encoder_block_1_moe"]
    >>> record.expert.shape, record.gates.shape
    ((3, 17, 1), (3, 17, 4))
    """
    require(isinstance(model, keras.Model), f"model must be a Keras model. Received: {model!r}")
    require(
        models.is_sparse(model),
        f"model must hold at least one MoE layer. {model.name!r} holds none",
    )
    pieces: dict[str, list[RoutingRecord]] = {}
    weights: dict[str, list[int]] = {}
    for batch in _batches(images):
        for name, call in _named(_run(model, batch)):
            for record in _records(name, call):
                pieces.setdefault(record.layer, []).append(record)
                weights.setdefault(record.layer, []).append(int(call.plan[0].shape[0]))
    require(bool(pieces), "images must hold at least one batch. Received: none")
    return {name: _joined(parts, weights[name]) for name, parts in pieces.items()}


def _batches(images: Any) -> Iterator[Any]:
    """The batches that were given, one or several."""
    if hasattr(images, "shape") or isinstance(images, Mapping):
        yield images
        return
    require(
        isinstance(images, Iterable),
        f"images must be a batch or an iterable of batches. Received: {type(images).__name__}",
    )
    for batch in images:
        yield batch[0] if isinstance(batch, (tuple, list)) else batch


def _run(model: keras.Model, batch: Any) -> list[RoutingCall]:
    inputs = model.inputs if getattr(model, "inputs", None) else None
    if inputs is None or len(inputs) == 1:
        batch = _images(batch, inputs)
        _check_shape(batch, None if inputs is None else inputs[0].shape)
    elif isinstance(batch, Mapping):
        batch = _inputs(batch, inputs)
    with layers.routing_metrics(False):
        if not model.built:
            # Building calls the layers symbolically, which is no routing to record.
            model(batch, training=False)
        with layers.record_routing() as calls:
            model(batch, training=False)
    require(bool(calls), f"model {model.name!r} holds MoE layers but called none of them")
    return calls


def _inputs(batch: Mapping[str, Any], inputs: list[Any]) -> Mapping[str, Any]:
    """What the inputs of a model are named after; all of a batch that goes by other names."""
    names = [x.name for x in inputs]
    missing = [name for name in names if name not in batch]
    if len(missing) == len(names):
        return batch
    require(
        not missing,
        f"images must be batches of dicts with {', '.join(map(repr, names))}. "
        f"Received: {sorted(batch)}",
    )
    rows = {name: len(batch[name]) for name in names}
    require(
        len(set(rows.values())) == 1 and min(rows.values()) > 0,
        f"images must be batches with as many rows, at least one, of each input. Received: {rows}",
    )
    return {name: batch[name] for name in names}


def _images(batch: Any, inputs: list[Any] | None) -> Any:
    if not isinstance(batch, Mapping):
        return batch
    names = (*(x.name for x in inputs or ()), "image", "images")
    name = next((name for name in names if name in batch), None)
    require(
        name is not None,
        f"images must be batches of arrays or of dicts with 'image'. Received: {sorted(batch)}",
    )
    return batch[name]


def _check_shape(images: Any, expected: tuple[int | None, ...] | None) -> None:
    require(
        hasattr(images, "shape"),
        f"images must be an array or a tensor. Received: {type(images).__name__}",
    )
    shape = tuple(images.shape)
    fits = expected is None or (
        len(shape) == len(expected)
        and all(want in (None, got) for want, got in zip(expected, shape, strict=True))
    )
    hint = ""
    if expected is not None and len(shape) == len(expected) - 1:
        hint = "; a single image needs a batch axis: images[None]"
    require(fits, f"images must have shape {expected}. Received: {shape}{hint}")
    require(shape[0] != 0, f"images must hold at least one image. Received: shape {shape}")


def _named(calls: list[RoutingCall]) -> Iterator[tuple[str, RoutingCall]]:
    counts: dict[str, int] = {}
    for call in calls:
        counts[call.layer] = counts.get(call.layer, 0) + 1
        number = counts[call.layer]
        yield call.layer if number == 1 else f"{call.layer}_{number}", call


def _numpy(values: Any) -> np.ndarray:
    return np.asarray(keras.ops.convert_to_numpy(values))


def _records(name: str, call: RoutingCall) -> list[RoutingRecord]:
    """The record of one call, or one of each member of an ensemble."""
    record = _record(name, call)
    if call.members == 1:
        return [record]
    return [_of_member(record, member, call.members) for member in range(call.members)]


def _of_member(record: RoutingRecord, member: int, members: int) -> RoutingRecord:
    """What one member of an ensemble did: its tokens and its experts."""
    tokens, experts = record.expert.shape[1] // members, record.num_experts // members
    own = slice(member * tokens, (member + 1) * tokens)
    arrays = {field: getattr(record, field)[:, own] for field in _arrays(record)}
    arrays["expert"] = arrays["expert"] - member * experts
    arrays["gates"] = arrays["gates"][..., member * experts : (member + 1) * experts]
    return dataclasses.replace(record, layer=f"{record.layer}_member_{member}", **arrays)


def _record(name: str, call: RoutingCall) -> RoutingRecord:
    """The record of one call, groups undone."""
    batch, length = int(call.batch), int(call.tokens_per_image)
    fields = _FIELDS[type(call.plan)](type(call.plan)(*map(_numpy, call.plan)))

    def per_image(values: np.ndarray) -> np.ndarray:
        return values.reshape(-1, length, *values.shape[2:])[:batch]

    router = fields.pop("router")
    fields["mask"] = np.ones(fields["gates"].shape[:2], bool)
    if call.mask is not None:
        fields["mask"] = _numpy(call.mask)
    if call.modality is not None:
        fields["modality"] = _numpy(call.modality)
    arrays = {field: per_image(values) for field, values in fields.items()}
    losses = {term: float(_numpy(value)) for term, value in call.losses.items()}
    slots = _slots(call)
    given = {"losses": losses, "slots": slots, "modalities": call.modalities}
    return RoutingRecord(layer=name, router=router, **given, **arrays)


def _slots(call: RoutingCall) -> int:
    """Slots of an expert in all groups of a call."""
    if isinstance(call.plan, ops.SoftPlan):
        return int(call.plan.combine.shape[0] * call.plan.combine.shape[-1])
    if call.group_capacity is not None:
        return int(_numpy(call.group_capacity).sum())
    return int(_numpy(call.capacity)) * int(call.plan.gates.shape[0])


def _token_choice(plan: ops.TokenChoicePlan) -> dict[str, Any]:
    return {"router": "top_k", **plan._asdict()}


def _expert_choice(plan: ops.ExpertChoicePlan) -> dict[str, Any]:
    """Slots with their tokens, `[g, e, c]`, as tokens with their experts, `[g, s, e]`."""
    shape = plan.gates.shape
    weight, kept = np.zeros(shape, plan.weight.dtype), np.zeros(shape, bool)
    slot = np.full(shape, -1, "int32")
    group, expert, place = np.nonzero(plan.kept)
    token = plan.token[group, expert, place]
    weight[group, token, expert] = plan.weight[group, expert, place]
    kept[group, token, expert] = True
    slot[group, token, expert] = place
    return {
        "router": "expert_choice",
        "expert": _all_experts(shape),
        "weight": weight,
        "kept": kept,
        "slot": slot,
        "gates": plan.gates,
    }


def _soft(plan: ops.SoftPlan) -> dict[str, Any]:
    weight = plan.combine.sum(-1)
    return {
        "router": "soft",
        "expert": _all_experts(weight.shape),
        "weight": weight,
        "kept": np.ones(weight.shape, bool),
        "slot": np.full(weight.shape, -1, "int32"),
        "gates": weight,
        "dispatch": plan.dispatch,
        "combine": plan.combine,
    }


def _all_experts(shape: tuple[int, ...]) -> np.ndarray:
    return np.broadcast_to(np.arange(shape[-1], dtype="int32"), shape)


_FIELDS = {
    ops.TokenChoicePlan: _token_choice,
    ops.ExpertChoicePlan: _expert_choice,
    ops.SoftPlan: _soft,
}


def _joined(records: list[RoutingRecord], groups: list[int]) -> RoutingRecord:
    """The records of several batches as one; losses are means over their groups."""
    if len(records) == 1:
        return records[0]
    arrays = {
        field: np.concatenate([getattr(record, field) for record in records])
        for field in _arrays(records[0])
    }
    losses = {
        term: float(np.average([record.losses[term] for record in records], weights=groups))
        for term in records[0].losses
    }
    slots = sum(record.slots for record in records)
    return dataclasses.replace(records[0], losses=losses, slots=slots, **arrays)
