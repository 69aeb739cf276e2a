"""Routing written as loops, straight from the papers' algorithms, to hold the package against."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np


class Choices(NamedTuple):
    """Token choice: arrays `[g, s, k]`."""

    expert: np.ndarray
    slot: np.ndarray
    weight: np.ndarray
    kept: np.ndarray


def priority(gates: np.ndarray, mask: np.ndarray, num_selected: int, score: str) -> np.ndarray:
    """`[g, s]`, the tokens by falling score; ties in token order, masked tokens last."""
    order = []
    for group, real in zip(gates, mask, strict=True):
        best = -np.sort(-group, axis=-1)[:, : 1 if score == "max" else num_selected]
        values = [
            (not ok, -row.sum(dtype=row.dtype), t)
            for t, (row, ok) in enumerate(zip(best, real, strict=True))
        ]
        order.append([t for _, _, t in sorted(values)])
    return np.array(order)


def token_choice(
    gates: np.ndarray,
    num_selected: int,
    capacity: Any,
    mask: np.ndarray | None = None,
    batch_priority: bool = False,
    score: str = "max",
) -> Choices:
    """Algorithms 1 and 2 of the V-MoE paper: one token at a time, one choice rank at a time."""
    g, s, e = gates.shape
    mask = np.ones((g, s), bool) if mask is None else mask
    order = np.tile(np.arange(s), (g, 1))
    if batch_priority:
        order = priority(gates, mask, num_selected, score)
    limits = np.broadcast_to(capacity, (g,))
    expert = np.argsort(-gates, axis=-1, kind="stable")[..., :num_selected]
    slot = np.full(expert.shape, -1)
    kept = np.zeros(expert.shape, bool)
    for i in range(g):
        queue = np.zeros(e, int)
        for rank in range(num_selected):
            for t in order[i]:
                if not mask[i, t]:
                    continue
                chosen = expert[i, t, rank]
                slot[i, t, rank] = queue[chosen]
                kept[i, t, rank] = queue[chosen] < limits[i]
                queue[chosen] += 1
    return Choices(expert, slot, np.take_along_axis(gates, expert, -1), kept)


def expert_choice(
    gates: np.ndarray, capacity: Any, mask: np.ndarray | None = None
) -> list[list[list[int]]]:
    """`[g][e]`, the tokens that each expert takes, best first."""
    g, s, e = gates.shape
    limits = np.broadcast_to(capacity, (g,))
    taken = []
    for i in range(g):
        real = [t for t in range(s) if mask is None or mask[i, t]]
        taken.append(
            [sorted(real, key=lambda t: (-gates[i, t, j], t))[: limits[i]] for j in range(e)]
        )
    return taken


def token_choice_mixture(
    tokens: np.ndarray, choices: Choices, expert: Callable[[int, np.ndarray], np.ndarray]
) -> np.ndarray:
    """`y[t] = sum over kept choices of weight * expert(x[t])`."""
    out = np.zeros_like(tokens)
    for index in zip(*np.nonzero(choices.kept), strict=True):
        i, t, _ = index
        out[i, t] += choices.weight[index] * expert(choices.expert[index], tokens[i, t])
    return out


def expert_choice_mixture(
    tokens: np.ndarray,
    gates: np.ndarray,
    taken: list[list[list[int]]],
    expert: Callable[[int, np.ndarray], np.ndarray],
) -> np.ndarray:
    out = np.zeros_like(tokens)
    for i, experts in enumerate(taken):
        for j, chosen in enumerate(experts):
            for t in chosen:
                out[i, t] += gates[i, t, j] * expert(j, tokens[i, t])
    return out


def soft_weights(
    logits: np.ndarray, mask: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Soft MoE's dispatch (over the tokens of a slot) and combine (over the slots of a token)."""
    dispatch, combine = np.zeros_like(logits), np.zeros_like(logits)
    g, s, e, c = logits.shape
    for i in range(g):
        real = [t for t in range(s) if mask is None or mask[i, t]]
        for t in real:
            exponentials = np.exp(logits[i, t] - logits[i, t].max())
            combine[i, t] = exponentials / exponentials.sum()
        for j in range(e):
            for p in range(c):
                if real:
                    column = logits[i, real, j, p]
                    exponentials = np.exp(column - column.max())
                    dispatch[i, real, j, p] = exponentials / exponentials.sum()
    return dispatch, combine


def random_gates(rng: np.random.Generator, g: int, s: int, e: int, ties: bool = False) -> Any:
    """Softmax probabilities, on a coarse grid of logits where ties are wanted."""
    logits = rng.integers(-1, 2, (g, s, e)) if ties else rng.normal(size=(g, s, e)) * 2
    exponentials = np.exp(logits.astype("float64"))
    return (exponentials / exponentials.sum(-1, keepdims=True)).astype("float32")
