"""What a layer's call does besides returning: losses, metrics, records, random draws.

Layers say these through `emit_loss`, `emit_metric` and `emit_record`, so that rematerialisation
can carry them out of a pure function, analysis can read plans, and tests can hand in noise.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import keras

from keras_vmoe.ops import Plan
from keras_vmoe.ops.validation import require


class RoutingCall(NamedTuple):
    """One routing of one MoE layer, as `record_routing` gives it.

    `capacity` is the slots of an expert in a full group, `group_capacity` those that each group may
    use, `[g]`, where groups are not full. Of an ensemble, `tokens_per_image` counts an image's
    tokens in all `members`. `modality` is the modality of each token, `[g, s]`, its place in
    `modalities`, where the router tells several apart. `mask` is which tokens count, `[g, s]`;
    `None`: all.
    """

    layer: str
    plan: Plan
    capacity: Any
    batch: Any
    tokens_per_image: Any
    losses: dict[str, Any]
    group_capacity: Any = None
    members: int = 1
    modality: Any = None
    modalities: tuple[str, ...] = ()
    mask: Any = None


class _State(threading.local):
    def __init__(self) -> None:
        self.collected: list[tuple[str, Any, Any]] | None = None
        self.metrics = True
        self.updates: list[tuple[Any, Any, Any]] | None = None
        self.records: list[RoutingCall] | None = None
        self.noise: list[Any] | None = None
        self.terms: dict[str, Any] = {}


_state = _State()


@contextlib.contextmanager
def _set(name: str, value: Any) -> Iterator[Any]:
    previous = getattr(_state, name)
    setattr(_state, name, value)
    try:
        yield value
    finally:
        setattr(_state, name, previous)


def collect_effects() -> contextlib.AbstractContextManager[list[tuple[str, Any, Any]]]:
    """Holds back losses and metric updates within a `with` block: (kind, owner, value)."""
    return _set("collected", [])


def collect_metrics() -> contextlib.AbstractContextManager[list[tuple[Any, Any, Any]]]:
    """Holds back metric updates alone within a `with` block: (metric, value, weights)."""
    return _set("updates", [])


def rematerialize(layer: keras.layers.Layer, function: Any, *inputs: Any) -> Any:
    """`function(*inputs)`, computed again in the backward pass instead of kept in memory.

    Random seeds are drawn before and losses and metrics carried out after, so what is computed
    twice is a pure function.

    Args:
        layer: whose sublayers' seed generators the function draws from.
        function: from tensors to one tensor.
        *inputs: the tensors. Others that the function reads get no gradient.
    """
    generators = _seed_generators(layer)
    owners: list[tuple[str, Any]] = []

    def pure(*arguments: Any) -> tuple[Any, ...]:
        given, seeds = arguments[: len(inputs)], arguments[len(inputs) :]
        with (
            fixed_seeds(generators, seeds),
            _kept_losses(layer),
            collect_effects() as collected,
        ):
            outputs = function(*given)
        owners[:] = [(kind, owner) for kind, owner, _ in collected]
        return (outputs, *(value for _, _, value in collected))

    seeds = [generator.next() for generator in generators]
    outputs, *values = keras.remat(pure)(*inputs, *seeds)
    for (kind, owner), value in zip(owners, values, strict=True):
        (emit_loss if kind == "loss" else emit_metric)(owner, value)
    return outputs


@contextlib.contextmanager
def _kept_losses(layer: keras.layers.Layer) -> Iterator[None]:
    """Undoes what a `with` block does to `layer.losses`.

    In the backward pass no outer layer is being called, so Keras takes each sublayer's call for a
    new one of the whole model and clears its losses.
    """
    kept = [(sublayer._losses, list(sublayer._losses)) for sublayer in layer._flatten_layers()]
    try:
        yield
    finally:
        for losses, before in kept:
            losses[:] = before


def _seed_generators(layer: keras.layers.Layer) -> list[keras.random.SeedGenerator]:
    found = {}
    for sublayer in layer._flatten_layers():
        for value in vars(sublayer).values():
            if isinstance(value, keras.random.SeedGenerator):
                found[id(value)] = value
    return list(found.values())


def emit_loss(layer: keras.layers.Layer, value: Any) -> None:
    """`layer.add_loss(value)`, unless effects are being collected."""
    if _state.collected is not None:
        _state.collected.append(("loss", layer, value))
    else:
        layer.add_loss(value)


def emit_metric(metric: keras.metrics.Mean, value: Any, weights: Any = None) -> None:
    """`metric.update_state(value, weights)`, unless metrics are off or effects are being collected.

    Layers, whose effects may be collected, give no weights.
    """
    if not _state.metrics:
        return
    if _state.collected is not None:
        _state.collected.append(("metric", metric, value))
    elif _state.updates is not None:
        _state.updates.append((metric, value, weights))
    elif not _emptied(metric):
        metric.update_state(value, weights)


def _emptied(metric: keras.metrics.Metric) -> bool:
    """Whether Keras' JAX trainer has taken the metric's state away while it traces a step.

    It hands no state of metrics into that trace; `models.FunctionalModel` carries updates out of
    it, any other model goes without.
    """
    return any(variable._value is None for variable in metric.variables)


def emit_record(record: RoutingCall) -> None:
    """Adds to the innermost `record_routing`, if there is one."""
    if _state.records is not None:
        _state.records.append(record)


def emit_term(name: str, value: Any) -> None:
    """Keeps an unweighted loss term for the record of the layer that is being called."""
    if _state.records is not None:
        _state.terms[name] = value


def take_terms() -> dict[str, Any]:
    """The loss terms since the last call of this function."""
    terms, _state.terms = _state.terms, {}
    return terms


def metrics_enabled() -> bool:
    """Whether layers should compute their routing metrics."""
    return _state.metrics


def recording() -> bool:
    """Whether a `record_routing` is open."""
    return _state.records is not None


def routing_metrics(enabled: bool) -> contextlib.AbstractContextManager[bool]:
    """Switches the routing metrics of all MoE layers on or off within a `with` block.

    They are off while a model is exported: a served graph should update no variable.

    Example:

    >>> from keras_vmoe import layers
    >>> with layers.routing_metrics(False):
    ...     layers.metrics_enabled()
    False
    """
    return _set("metrics", enabled)


def record_routing() -> contextlib.AbstractContextManager[list[RoutingCall]]:
    """Collects the plan of every MoE layer that is called within a `with` block.

    `keras_vmoe.analysis.routing_records` is the comfortable form.

    Example:

    >>> import numpy as np
    >>> from keras_vmoe import layers
    >>> moe = layers.MoEMLP(layers.TopKRouter(num_experts=4, num_selected=1), hidden_dim=8)
    >>> with layers.record_routing() as calls:
    ...     _ = moe(np.ones((2, 3, 5), "float32"))
    >>> len(calls), tuple(calls[0].plan.expert.shape)
    (1, (1, 6, 1))
    """
    return _set("records", [])


@contextlib.contextmanager
def handed_noise(noise: Sequence[Any]) -> Iterator[None]:
    """Hands unit-normal noise to the routers that would draw some within a `with` block.

    Args:
        noise: one array per router call with `training=True`, in call order, each shaped like
            that router's logits. Routers whose `noise_std` is 0 take none.

    Raises:
        ValueError: where more or fewer routers draw noise than arrays were given.

    Example:

    >>> import numpy as np
    >>> from keras_vmoe import layers
    >>> router = layers.TopKRouter(num_experts=4, num_selected=1)
    >>> with layers.handed_noise([np.zeros((1, 3, 4), "float32")]):
    ...     plan = router(np.ones((1, 3, 5), "float32"), training=True)
    """
    pending = list(noise)
    with _set("noise", pending):
        yield
    require(
        not pending,
        f"noise must hold one array per router call. Received: {len(noise)} arrays, "
        f"{len(pending)} of them unused",
    )


def noise_is_handed() -> bool:
    """Whether a `handed_noise` is open."""
    return _state.noise is not None


def next_handed_noise() -> Any | None:
    """The next array of the innermost `handed_noise`, or `None` where none is open."""
    if _state.noise is None:
        return None
    require(
        len(_state.noise) > 0,
        "noise must hold one array per router call. Received: fewer arrays than routers",
    )
    return _state.noise.pop(0)


@contextlib.contextmanager
def fixed_seeds(
    generators: Sequence[keras.random.SeedGenerator], seeds: Sequence[Any]
) -> Iterator[None]:
    """Makes seed generators give given seeds, and change no state, within a `with` block.

    Later draws of the same generator get other seeds, far from those of later calls.
    """

    def fixed(seed: Any) -> Any:
        draws = iter(range(2**31))
        return lambda ordered=True: (
            seed + keras.ops.convert_to_tensor([next(draws) * 7919, 0], dtype=seed.dtype)
        )

    for generator, seed in zip(generators, seeds, strict=True):
        generator.next = fixed(seed)
    try:
        yield
    finally:
        for generator in generators:
            del generator.next
