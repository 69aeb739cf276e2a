"""What each kind of router costs: a function per router class, found by `routing_cost`."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any, NamedTuple

from keras_vmoe import layers, ops
from keras_vmoe.analysis.parts import RoutingCost
from keras_vmoe.ops.validation import require, require_positive_int, require_selected


class Counting(NamedTuple):
    """What is counted, and how capacity is.

    Attributes:
        training: take the capacity factor of training, not that of evaluation.
        whole_slots: count the slots of full groups, rounded as the router rounds them, instead of
            the capacity factor as it is given.
        modality: of a model of images and texts, the one that is encoded alone; `None`: a pair.
    """

    training: bool = False
    whole_slots: bool = False
    modality: str | None = None


class Group(NamedTuple):
    """What is routed together: `images` of `tokens` tokens of `width`."""

    images: int
    tokens: int
    width: int


Cost = Callable[[Any, Group, Counting], RoutingCost]
_COSTS: dict[type, Cost] = {}


def register_router(cls: type[layers.Router]) -> Callable[[Cost], Cost]:
    """Makes a function the cost of a router class and of the classes derived from it.

    The function gets the router's settings as attributes (of the router itself, or of a namespace
    where there is none), the `Group` and the `Counting`, and gives a `RoutingCost`.
    """

    def register(function: Cost) -> Cost:
        _COSTS[cls] = function
        return function

    return register


def router_settings(cls: type[layers.Router], given: Mapping[str, Any]) -> SimpleNamespace:
    """The settings of a router that is not made: defaults of the class under what is given.

    Making one would allocate the state of its noise.
    """
    settings: dict[str, Any] = {}
    for owner in (layers.Router, cls):
        parameters = inspect.signature(owner.__init__).parameters.values()
        settings.update({p.name: p.default for p in parameters if p.default is not p.empty})
    own = inspect.signature(cls.__init__).parameters
    settings.update({n: v for n, v in given.items() if n in own and v is not None})
    return SimpleNamespace(**settings)


def call_settings(router: layers.Router, arguments: Mapping[str, Any]) -> SimpleNamespace:
    """The settings of a router in a call that overrides some of them."""
    given = {name: value for name, value in arguments.items() if value is not None}
    settings = {"num_members": router.num_members, **vars(router)}
    if "num_selected" in given:
        settings["num_selected"] = given["num_selected"]
    if "capacity_factor" in given:
        settings.update(capacity_factor=given["capacity_factor"], eval_capacity_factor=None)
        settings.update(expert_capacity=None)
    return SimpleNamespace(**settings)


def routing_cost(
    cls: type[layers.Router], settings: Any, group: Group, counting: Counting
) -> RoutingCost:
    """The cost of a router of class `cls` with the given settings.

    Raises:
        ValueError: settings that the router would refuse; the message names them.
    """
    for name in ("num_experts", "capacity_multiple_of"):
        require_positive_int(name, getattr(settings, name))
    require_positive_int("images_per_group", group.images)
    cost = next((_COSTS[base] for base in cls.__mro__ if base in _COSTS), None)
    require(cost is not None, f"there is no cost for routers of class {cls.__name__}")
    return cost(settings, group, counting)


def capacity_factor(settings: Any, training: bool) -> float:
    """The factor C that holds."""
    factor = None if training else settings.eval_capacity_factor
    factor = settings.capacity_factor if factor is None else factor
    require(
        isinstance(factor, (int, float)) and factor > 0,
        f"capacity_factor must be above 0. Received: capacity_factor={factor!r}",
    )
    return factor


def slots_per_expert(settings: Any, group: Group, training: bool, k: int = 1) -> int:
    """Slots of each expert in a full group, as the router makes them."""
    tokens = group.images * group.tokens
    if settings.expert_capacity is not None:
        return min(settings.expert_capacity, tokens)
    slots = ops.compute_capacity(
        tokens,
        settings.num_experts,
        capacity_factor(settings, training),
        k,
        settings.capacity_rounding,
        settings.capacity_multiple_of,
        at_least_one=True,
    )
    return min(slots, tokens)


def _rows(settings: Any, group: Group, counting: Counting, k: int) -> float:
    """Rows per image in the experts' buffers: `t k C`, or the slots there are for an image.

    Buffers count whether or not they are filled, and never exceed every token at every expert.
    """
    e = settings.num_experts
    if counting.whole_slots or settings.expert_capacity is not None:
        return e * slots_per_expert(settings, group, counting.training, k) / group.images
    return group.tokens * min(k * capacity_factor(settings, counting.training), e)


@register_router(layers.TopKRouter)
def _top_k(settings: Any, group: Group, counting: Counting) -> RoutingCost:
    k, e = settings.num_selected, settings.num_experts
    require_selected(k, e)
    weights = group.width * e
    return RoutingCost(weights, group.tokens * weights, _rows(settings, group, counting, k), k)


@register_router(layers.ModalityRouter)
def _of_modalities(settings: Any, group: Group, counting: Counting) -> RoutingCost:
    """As top-k; but where slots are for all choices of all tokens, it is the choices that count.

    Those slots say that nothing is dropped, and are nearly all empty.
    """
    k, cost = settings.num_selected, _top_k(settings, group, counting)
    if counting.whole_slots or settings.expert_capacity is not None:
        return cost
    nothing_drops = k * capacity_factor(settings, counting.training) >= settings.num_experts
    return cost._replace(expert_rows=group.tokens * k) if nothing_drops else cost


@register_router(layers.EnsembleTopKRouter)
def _ensemble_top_k(settings: Any, group: Group, counting: Counting) -> RoutingCost:
    """Of one member, for its copy of each image."""
    m, e = settings.num_members, settings.num_experts
    require_positive_int("num_members", m)
    require(
        e % m == 0,
        f"num_members must divide num_experts. Received: num_members={m}, num_experts={e}",
    )
    own = _top_k(SimpleNamespace(**{**vars(settings), "num_experts": e // m}), group, counting)
    return own._replace(params=group.width * e, experts_per_token=m * own.experts_per_token)


@register_router(layers.ExpertChoiceRouter)
def _expert_choice(settings: Any, group: Group, counting: Counting) -> RoutingCost:
    weights = group.width * settings.num_experts
    rows = _rows(settings, group, counting, k=1)
    # A token is taken by C experts in the mean.
    return RoutingCost(weights, group.tokens * weights, rows, rows / group.tokens)


@register_router(layers.SoftRouter)
def _soft(settings: Any, group: Group, counting: Counting) -> RoutingCost:
    slots = settings.num_slots
    if slots is None:
        slots = slots_per_expert(settings, group, training=True)
    require_positive_int("num_slots", slots)
    all_slots = settings.num_experts * slots
    # Scores, the mixing of tokens into slots, and that of slots into tokens, cost the same each.
    mixing = 3 * group.tokens * group.width * all_slots
    rows = all_slots / group.images
    return RoutingCost(group.width * all_slots + 1, mixing, rows, settings.num_experts)
