"""How a trained LIMoE routes held-out pairs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import keras
import numpy as np

from keras_vmoe import analysis, data


class Routed(NamedTuple):
    """Pairs, and how each MoE layer routed them.

    Attributes:
        images: `[b, height, width, channels]`, as the model sees them.
        tokens: `[b, text_length]`.
        records: MoE layer name to its record.
        piece: gives the string of a token id.
    """

    images: np.ndarray
    tokens: np.ndarray
    records: dict[str, analysis.RoutingRecord]
    piece: Callable[[int], str]

    def taken_experts(self, modality: str) -> float:
        """How many experts take a modality's tokens, in the layer where they are fewest.

        It is `exp(H)` of the experts' shares of the tokens. Gates that are undecided are spread
        over more experts than the tokens are.

        Args:
            modality: "image" or "text".
        """
        found = []
        for record in self.records.values():
            taken = analysis.modality_counts(record)[:, record.modalities.index(modality)]
            shares = taken[taken > 0] / taken.sum()
            found.append(float(np.exp(-np.sum(shares * np.log(shares)))))
        return min(found)


def route(workdir: Path, split: data.Split, batch_size: int = 250) -> Routed:
    """Returns how the model of a run routes the pairs of a split.

    Args:
        workdir: of the run.
        split: the pairs.
        batch_size: pairs of one step.
    """
    trained = keras.models.load_model(workdir / "model.keras", compile=False)
    model, tokenizer = trained.model, trained.tokenizer
    _, side, _, channels = model.input["images"].shape
    batches = data.make_pairs(
        split,
        tokenizer,
        batch_size=min(batch_size, split.num_examples),
        image_size=side,
        channels=channels,
    )
    pairs = [
        {"images": batch["image"].numpy(), "tokens": batch["tokens"].numpy()} for batch in batches
    ]
    return Routed(
        images=np.concatenate([pair["images"] for pair in pairs]),
        tokens=np.concatenate([pair["tokens"] for pair in pairs]),
        records=analysis.routing_records(model, pairs),
        piece=tokenizer.piece,
    )
