"""A forward pass of the reference's VisionTransformerMoe in NumPy, from its config and parameters.

Plain loops and formulas, in float64: what options are tested against that no golden file holds.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from tests.support import oracles


def softmax(x: np.ndarray) -> np.ndarray:
    exponentials = np.exp(x - x.max(-1, keepdims=True))
    return exponentials / exponentials.sum(-1, keepdims=True)


def gelu(x: np.ndarray) -> np.ndarray:
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


class Parameters:
    """The arrays below a path; `taken` collects the names of all that were used."""

    def __init__(self, arrays: dict[str, np.ndarray], path: str = "", taken: set | None = None):
        self.arrays, self.path = arrays, path
        self.taken: set[str] = set() if taken is None else taken

    def __getitem__(self, name: str) -> np.ndarray:
        self.taken.add(self.path + name)
        return self.arrays[self.path + name].astype("float64")

    def at(self, name: str) -> Parameters:
        return Parameters(self.arrays, f"{self.path}{name}/", self.taken)


def norm(p: Parameters, x: np.ndarray, bias: bool = True) -> np.ndarray:
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    return x * p["scale"] + (p["bias"] if bias else 0)


def dense(p: Parameters, x: np.ndarray) -> np.ndarray:
    return x @ p["kernel"] + p["bias"]


def mlp(p: Parameters, x: np.ndarray) -> np.ndarray:
    return dense(p.at("Dense_1"), gelu(dense(p.at("Dense_0"), x)))


def attention(p: Parameters, q: np.ndarray, kv: np.ndarray, qk_norm: bool) -> np.ndarray:
    def project(name: str, x: np.ndarray) -> np.ndarray:
        own = p.at(name)
        return np.einsum("btd,dhc->bthc", x, own["kernel"]) + own["bias"]

    query, key, value = project("query", q), project("key", kv), project("value", kv)
    if qk_norm:
        query = norm(p.at("query_ln"), query, bias=False)
        key = norm(p.at("key_ln"), key, bias=False)
    weights = softmax(np.einsum("bqhc,bkhc->bhqk", query, key) / math.sqrt(query.shape[-1]))
    mixed = np.einsum("bhqk,bkhc->bqhc", weights, value)
    return np.einsum("bqhc,hcd->bqd", mixed, p.at("out")["kernel"]) + p.at("out")["bias"]


def capacity(dispatcher: dict[str, Any], assignments: int, experts: int) -> int:
    if "capacity" in dispatcher:
        return dispatcher["capacity"]
    value = assignments * dispatcher["capacity_factor"] / experts
    rounded = {"ceil": math.ceil, "round": round}[dispatcher.get("capacity_ceil_or_round", "ceil")]
    multiple = dispatcher.get("capacity_multiple_of", 4) or 1
    return -(-rounded(value) // multiple) * multiple


def moe(p: Parameters, config: dict[str, Any], x: np.ndarray) -> np.ndarray:
    groups = x.reshape(-1, config["group_size"], x.shape[-1])
    router, experts = config["router"], config["num_experts"]

    def expert(index: int, rows: np.ndarray) -> np.ndarray:
        first, second = p.at("Mlp/Dense_0"), p.at("Mlp/Dense_1")
        hidden = gelu(rows @ first["kernel"][index] + first["bias"][index])
        return hidden @ second["kernel"][index] + second["bias"][index]

    if router.get("name", "").endswith("SoftRouter"):
        return soft_moe(p.at("Router"), groups, expert).reshape(x.shape)
    gates = softmax(groups @ p.at("Router/dense")["kernel"])
    dispatcher = router["dispatcher"]
    if router.get("name") == "NoisyTopItemsPerExpertRouter":
        taken = oracles.expert_choice(gates, capacity(dispatcher, groups.shape[1], experts))
        return oracles.expert_choice_mixture(groups, gates, taken, expert).reshape(x.shape)
    k = router.get("num_selected_experts", 1)
    slots = capacity(dispatcher, groups.shape[1] * k, experts)
    priority = dispatcher.get("batch_priority", False)
    choices = oracles.token_choice(gates, k, slots, batch_priority=priority)
    return oracles.token_choice_mixture(groups, choices, expert).reshape(x.shape)


def soft_moe(p: Parameters, groups: np.ndarray, expert: Any) -> np.ndarray:
    tokens = groups / np.sqrt((groups**2).sum(-1, keepdims=True) + 1e-6)
    slots = p["mu"] / np.sqrt((p["mu"] ** 2).sum(0, keepdims=True) + 1e-6)
    logits = p["scale"] * np.einsum("gsd,dep->gsep", tokens, slots)
    dispatch, combine = oracles.soft_weights(logits)
    inputs = np.einsum("gsep,gsd->gepd", dispatch, groups)
    outputs = np.stack([expert(i, inputs[:, i]) for i in range(slots.shape[1])], axis=1)
    return np.einsum("gsep,gepd->gsd", combine, outputs)


def patches(p: Parameters, images: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    rows, columns = images.shape[1] // size[0], images.shape[2] // size[1]
    out = np.zeros((len(images), rows, columns, p["kernel"].shape[-1]))
    for i in range(rows):
        for j in range(columns):
            window = images[:, i * size[0] :, j * size[1] :][:, : size[0], : size[1]]
            out[:, i, j] = np.einsum("bhwc,hwcd->bd", window, p["kernel"]) + p["bias"]
    return out


def sincos(grid: tuple[int, int], width: int, temperature: float) -> np.ndarray:
    omega = [temperature ** (-i / (width // 4 - 1)) for i in range(width // 4)]
    table = []
    for y in range(grid[0]):
        for x in range(grid[1]):
            angles = [[axis * w for w in omega] for axis in (x, y)]
            table.append([f(a) for axis in angles for f in (math.sin, math.cos) for a in axis])
    return np.array(table)


def positions(p: Parameters, config: dict[str, Any], x: np.ndarray, grid: Any) -> np.ndarray:
    name = config.get("name", "learned")
    if name == "learned":
        return x + p.at("posembed_input")["pos_embedding"]
    if name == "sincos2d":
        table = sincos(grid, x.shape[-1], config.get("temperature", 10_000.0))
        x[:, -len(table) :] += table
    return x


def forward(
    config: dict[str, Any], arrays: dict[str, np.ndarray], images: np.ndarray
) -> tuple[np.ndarray, set[str]]:
    """Logits (or features), and the names of the parameters that they were made from."""
    p = Parameters(arrays)
    encoder, classifier = config["encoder"], config.get("classifier", "token")
    x = patches(p.at("embedding"), images.astype("float64"), config["patch_size"])
    grid = x.shape[1:3]
    x = x.reshape(len(x), -1, x.shape[-1])
    if classifier == "token":
        x = np.concatenate([np.tile(p["cls"], (len(x), 1, 1)), x], axis=1)
    own = p.at("Encoder")
    x = positions(own, encoder.get("position_emb") or {}, x, grid)
    sparse = encoder.get("moe") or {}
    qk_norm = encoder.get("attention_qk_norm", False)
    for i in range(encoder["num_layers"]):
        block = own.at(f"encoderblock_{i}")
        y = norm(block.at("LayerNorm_0"), x)
        x = x + attention(block.at("SelfAttention"), y, y, qk_norm)
        y = norm(block.at("LayerNorm_1"), x)
        if i in sparse.get("layers", ()):
            x = x + moe(block.at("Moe"), sparse, y)
        else:
            x = x + mlp(block.at("Mlp"), y)
    x = norm(own.at("encoder_norm"), x)
    if classifier in ("token", "0"):
        x = x[:, 0]
    elif classifier == "gap":
        x = x.mean(1)
    else:
        head = p.at("MapHead")
        probe = np.tile(head["probe"], (len(x), 1, 1))
        x = attention(head.at("MultiHeadDotProductAttention"), probe, x, qk_norm)
        x = (x + mlp(head.at("Mlp"), norm(head.at("LayerNorm"), x)))[:, 0]
    if config.get("representation_size") is not None:
        x = np.tanh(dense(p.at("pre_logits"), x))
    if config.get("num_classes"):
        x = dense(p.at("head"), x)
    return x, p.taken
