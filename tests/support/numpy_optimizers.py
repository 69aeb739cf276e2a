"""The optimizers in NumPy, float64, one variable and one number at a time where it matters."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence

import numpy as np

Arrays = Mapping[str, np.ndarray]


def adam(beta_1=0.9, beta_2=0.999, epsilon=1e-8) -> Callable:
    def rule(g, state, t, _name):
        m, v = state.get("m", 0.0), state.get("v", 0.0)
        state["m"] = m = beta_1 * m + (1 - beta_1) * g
        state["v"] = v = beta_2 * v + (1 - beta_2) * g**2
        return (m / (1 - beta_1**t)) / (np.sqrt(v / (1 - beta_2**t)) + epsilon)

    return rule


def momentum(decay=0.9) -> Callable:
    def rule(g, state, _t, _name):
        state["m"] = decay * state.get("m", 0.0) + g
        return state["m"]

    return rule


def adafactor(axes: Mapping[str, tuple[int, int] | None], decay=0.9) -> Callable:
    """`axes`: which two axes of each variable are factored."""

    def rule(g, state, t, name):
        keep = min(1 - t**-0.8, 0.999)
        squares = g**2 + 1e-30
        if axes[name] is None:
            state["v"] = keep * state.get("v", 0.0) + (1 - keep) * squares
            update = g / np.sqrt(state["v"])
        else:
            first, last = axes[name]
            for key, axis in (("row", last), ("column", first)):
                mean = squares.mean(axis, keepdims=True)
                state[key] = keep * state.get(key, 0.0) + (1 - keep) * mean
            mean = state["row"].mean(first, keepdims=True)
            update = g / np.sqrt(state["row"] / mean * state["column"])
        state["m"] = decay * state.get("m", 0.0) + (1 - decay) * update
        return state["m"]

    return rule


def train(
    rule: Callable,
    start: Arrays,
    gradients: Sequence[Arrays],
    rate: Callable[[int], float],
    decay: Mapping[str, float],
    clip: float | None = None,
    accumulate: int = 1,
    ema: float | None = None,
) -> tuple[list[Arrays], list[Arrays]]:
    """Returns the values, and their averages, after each update.

    `rate` is asked for updates 0, 1, …; `decay` gives the weight decay by name.
    """
    values = {name: value.astype("float64") for name, value in start.items()}
    states, averages = {name: {} for name in start}, None
    trail, average_trail = [], []
    for update in range(len(gradients) // accumulate):
        chunk = gradients[update * accumulate : (update + 1) * accumulate]
        mean = {n: sum(g[n].astype("float64") for g in chunk) / accumulate for n in start}
        every = itertools.chain.from_iterable(g.flat for g in mean.values())
        norm = np.sqrt(sum(x * x for x in every))
        scale = 1.0 if clip is None or norm < clip else clip / norm
        for name, gradient in mean.items():
            step = rule(gradient * scale, states[name], update + 1, name)
            values[name] = values[name] - rate(update) * (step + decay[name] * values[name])
        if averages is None or ema is None:
            averages = dict(values)
        else:
            averages = {n: ema * averages[n] + (1 - ema) * values[n] for n in values}
        trail.append(dict(values))
        average_trail.append(averages)
    return trail, average_trail
