"""Model classes that are profiled from their arguments alone, without being built."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

from keras_vmoe import layers, models
from keras_vmoe.analysis import parts
from keras_vmoe.analysis.routing_costs import Counting, Group, router_settings, routing_cost
from keras_vmoe.analysis.rows import LayerProfile
from keras_vmoe.models.efficient_ensemble import vmoe_arguments
from keras_vmoe.models.limoe import MODALITIES, evaluation_capacity_factor
from keras_vmoe.models.mobile_graph import IMAGES_PER_GROUP, check_arguments, first_moe_block
from keras_vmoe.models.placement import moe_blocks
from keras_vmoe.models.vit import POOLINGS, Members, image_shape
from keras_vmoe.models.vmoe import ROUTERS, images_per_group
from keras_vmoe.ops.validation import require, require_choice, require_positive_int

Rows = Callable[[SimpleNamespace, Counting], list[LayerProfile]]
Mlp = Callable[[int, int], LayerProfile]
_MODELS: dict[type, Rows] = {}

_TOP_K = layers.TopKRouter
ROUTER_CLASSES = {
    "top_k": _TOP_K,
    "expert_choice": layers.ExpertChoiceRouter,
    "soft": layers.SoftRouter,
}


def register_model(cls: type) -> Callable[[Rows], Rows]:
    """Makes a function the closed form of a model class (not of classes derived from it).

    The function gets all arguments of the class as attributes, and the `Counting`, and gives a row
    per layer. It must agree with `count_params()` of the model that the arguments build.
    """

    def register(function: Rows) -> Rows:
        _MODELS[cls] = function
        return function

    return register


def has_closed_form(cls: type) -> bool:
    """Whether models of exactly this class can be profiled from their arguments."""
    return cls in _MODELS


def closed_form(
    cls: type, arguments: Mapping[str, Any], counting: Counting
) -> tuple[LayerProfile, ...]:
    """The rows of a model of class `cls`.

    Args:
        cls: a registered class.
        arguments: of the class; those left out have its defaults.
        counting: how capacity is counted.

    Raises:
        ValueError: arguments that the class would refuse; the message names them.
    """
    rows = _MODELS[cls](with_defaults(cls, arguments), counting)
    return tuple(row for row in rows if row.counts)


def with_defaults(cls: type, arguments: Mapping[str, Any]) -> SimpleNamespace:
    """All arguments of a class as attributes: those given, and the defaults of the others."""
    parameters = inspect.signature(cls.__init__).parameters.values()
    defaults = {p.name: p.default for p in parameters if p.default is not p.empty}
    return SimpleNamespace(**{**defaults, **arguments})


_ENCODER = ("num_layers", "width", "mlp_dim", "num_heads", "channels")


@register_model(models.ViT)
def _vit(a: SimpleNamespace, counting: Counting) -> list[LayerProfile]:
    return _transformer(a, lambda i, t: parts.mlp("mlp", t, a.width, a.mlp_dim))


@register_model(models.VMoE)
def _vmoe(a: SimpleNamespace, counting: Counting) -> list[LayerProfile]:
    require_choice("router", a.router, ROUTERS)
    require(
        a.router == "soft" or a.num_slots is None,
        f"num_slots is of soft routers only. Received: router={a.router!r}",
    )
    require_positive_int("num_layers", a.num_layers)
    return _transformer(
        a, sparse_mlp(a, counting, ROUTER_CLASSES[a.router], images_per_group(vars(a)))
    )


@register_model(models.EfficientEnsemble)
def _ensemble(a: SimpleNamespace, counting: Counting) -> list[LayerProfile]:
    require_positive_int("num_layers", a.num_layers)
    first = min(moe_blocks(a.placement, a.num_layers), default=None)
    require(
        first is not None,
        f"placement must name at least one sparse block. Received: placement={a.placement!r}",
    )
    as_vmoe = SimpleNamespace(**vmoe_arguments(vars(a)), num_members=a.num_members)
    images = images_per_group(vars(as_vmoe))
    mlp = sparse_mlp(as_vmoe, counting, layers.EnsembleTopKRouter, images)
    return _transformer(a, mlp, Members(a.num_members, first))


@register_model(models.MobileVMoE)
def _mobile_vmoe(a: SimpleNamespace, counting: Counting) -> list[LayerProfile]:
    """An image uses k experts of each MoE layer, whose router is one row for all of them."""
    check_arguments(vars(a))
    first, k, e = first_moe_block(vars(a)), a.num_selected, a.num_experts
    name = f"encoder_block_{first}"
    if a.routing == "token":
        sparse = {**vars(a), "placement": f"final_{a.num_moe_layers}"}
        mlp = sparse_mlp(SimpleNamespace(**sparse), counting, _TOP_K, IMAGES_PER_GROUP)
        return _transformer(a, mlp)
    if a.routing == "dense":
        return _transformer(
            a, lambda i, t: parts.mlp("mlp", t, a.width, a.mlp_dim * (k if i >= first else 1))
        )

    def mlp(i: int, tokens: int) -> LayerProfile:
        if i < first:
            return parts.mlp("mlp", tokens, a.width, a.mlp_dim)
        cost = parts.RoutingCost(0, 0, k * tokens, k)
        return parts.mixture(f"encoder_block_{i}_moe", tokens, a.width, a.mlp_dim, e, cost)

    rows = _transformer(a, mlp)
    router = parts.dense("router", (), a.width, e, a.router_bias)
    rows.insert([row.name for row in rows].index(name), router)
    return rows


@register_model(models.LIMoE)
def _limoe(a: SimpleNamespace, counting: Counting) -> list[LayerProfile]:
    """One pair, or one modality of it alone."""
    _require_sizes(a, _ENCODER)
    _require_sizes(a, ("vocabulary_size", "text_length", "pairs_per_group"))
    require_choice("loss", a.loss, ("softmax", "sigmoid"))
    modalities = MODALITIES if counting.modality is None else (counting.modality,)
    rows, segments = [], []
    for name in modalities:
        embedded = _EMBEDDED[name](a)
        segments.append(embedded[0].output_shape[0])
        rows += embedded
    tokens = sum(segments)
    settings = {**vars(a), "eval_capacity_factor": evaluation_capacity_factor(vars(a))}
    mlp = sparse_mlp(
        SimpleNamespace(**settings), counting, layers.ModalityRouter, a.pairs_per_group
    )
    sizes = (tokens, a.width, a.num_heads, a.qk_norm)
    rows += [
        parts.encoder_block(f"encoder_block_{i}", *sizes, mlp(i, tokens), segments)
        for i in range(a.num_layers)
    ]
    rows.append(parts.layer_norm("encoder_norm", (tokens, a.width)))
    dim = a.projection_dim or a.width
    rows += [parts.dense(f"{name}_projection", (), a.width, dim) for name in modalities]
    if counting.modality is None:
        rows.append(LayerProfile("logit_scale", params=2 if a.loss == "sigmoid" else 1))
    return rows


def _embedded_image(a: SimpleNamespace) -> list[LayerProfile]:
    embedding = _patch_embedding(a)
    tokens, kind = embedding.output_shape[0], a.position_embedding
    return [embedding, parts.position_embedding("position_embedding", kind, tokens, a.width)]


def _embedded_text(a: SimpleNamespace) -> list[LayerProfile]:
    length, name = a.text_length, "text_position_embedding"
    return [
        parts.text_embedding("text_embedding", length, a.vocabulary_size, a.width),
        parts.position_embedding(name, "learned", length, a.width),
    ]


_EMBEDDED = {"image": _embedded_image, "text": _embedded_text}


def sparse_mlp(a: SimpleNamespace, counting: Counting, router: type, images: int) -> Mlp:
    """The rows of the MLPs, some of them sparse; so many images are routed together."""
    sparse = moe_blocks(a.placement, a.num_layers)
    settings = router_settings(router, vars(a))

    def mlp(i: int, tokens: int) -> LayerProfile:
        if i not in sparse:
            return parts.mlp("mlp", tokens, a.width, a.mlp_dim)
        group = Group(images, tokens, a.width)
        cost = routing_cost(router, settings, group, counting)
        name = f"encoder_block_{i}_moe"
        return parts.mixture(name, tokens, a.width, a.mlp_dim, a.num_experts, cost)

    return mlp


def _transformer(
    a: SimpleNamespace, mlp: Mlp, members: Members | None = None
) -> list[LayerProfile]:
    """The rows of a ViT whose i-th block has the MLP `mlp(i, tokens)`."""
    require_choice("pooling", a.pooling, POOLINGS)
    _require_sizes(a, _ENCODER)
    embedding = _patch_embedding(a)
    has_token = a.pooling == "token"
    t = embedding.output_shape[0] + has_token
    rows = [embedding, *([parts.class_token("class_token", t, a.width)] if has_token else [])]
    rows.append(parts.position_embedding("position_embedding", a.position_embedding, t, a.width))
    blocks = [
        parts.encoder_block(f"encoder_block_{i}", t, a.width, a.num_heads, a.qk_norm, mlp(i, t))
        for i in range(a.num_layers)
    ]
    count, first = members or (1, 0)
    rows += blocks[:first]
    rows += [row.times(count) for row in blocks[first:]]
    rows.append(parts.layer_norm("encoder_norm", (t, a.width)).times(count))
    if a.pooling == "map":
        pooling = parts.attention_pooling("pooling", t, a.width, a.num_heads, a.mlp_dim, a.qk_norm)
        rows.append(pooling.times(count))
    return rows + _head(a, () if members is None else (count,))


def _require_sizes(a: SimpleNamespace, names: Sequence[str]) -> None:
    for name in names:
        require_positive_int(name, getattr(a, name))


def _patch_embedding(a: SimpleNamespace) -> LayerProfile:
    patch = image_shape(a.patch_size)
    for side in patch:
        require_positive_int("patch_size", side)
    return parts.patch_embedding("embedding", image_shape(a.image_size), patch, a.channels, a.width)


def _head(a: SimpleNamespace, shape: tuple[int, ...]) -> list[LayerProfile]:
    """What is done to the pooled tokens, of members side by side where `shape` holds them."""
    rows, width = [], a.width
    if a.representation_size is not None:
        require_positive_int("representation_size", a.representation_size)
        rows.append(parts.dense("pre_logits", shape, width, a.representation_size))
        width = a.representation_size
    if a.num_classes is not None:
        require_positive_int("num_classes", a.num_classes)
        rows.append(parts.dense("head", shape, width, a.num_classes))
    return rows
