"""The pieces of text of each expert."""

import numpy as np
import pytest

from keras_vmoe import analysis
from keras_vmoe.analysis import figures
from tests.analysis.figures import made

LAYER = "encoder_block_1_moe"
TOKENS = np.array([[5, 6, 5, 1, 1], [5, 7, 5, 6, 1]])
MASK = np.array([[True, True, True, True, False], [True] * 5])
PIECES = {1: "</s>", 5: "\u2581a", 6: "$x$", 7: "ing"}


def record(**overrides):
    """Expert 0 takes "a" and one "x", expert 2 the rest; one "a" is dropped."""
    expert = np.array([[0, 0, 0, 2, 1], [0, 2, 0, 2, 2]])[..., None]
    kept = MASK[..., None].copy()
    kept[1, 2] = False
    fields = {
        "layer": LAYER,
        "router": "top_k",
        "expert": expert,
        "weight": np.ones(expert.shape),
        "kept": kept,
        "slot": expert,
        "gates": np.full((2, 5, 4), 1 / 4),
        "mask": MASK,
    }
    return analysis.RoutingRecord(**{**fields, **overrides})


def test_bars_and_rows(tmp_path):
    path = tmp_path / "tokens.png"
    figure = figures.plot_tokens_of_experts(TOKENS, record(), PIECES.get, path, most=2)
    first, second = figure.axes
    assert first.get_title() == "expert 0: 50.0% of the kept tokens"
    assert second.get_title() == "expert 2: 50.0% of the kept tokens"
    assert [bar.get_width() for bar in first.patches] == [75, 25]
    assert [label.get_text() for label in first.get_yticklabels()] == ["\u2581a", "$x$"]
    assert not any(label.get_parse_math() for label in first.get_yticklabels())
    assert [entry.get_text() for entry in first.texts] == [" 3 (75%)", " 1 (50%)"]
    # What is behind the end of a text is none of its tokens.
    assert [entry.get_text() for entry in second.texts] == [" 2 (100%)", " 1 (50%)"]
    assert first.get_xlabel() == second.get_xlabel() == "% of the expert's tokens"
    assert "left out" not in figure.get_suptitle()
    found = made.rows(path)
    assert [(row["expert"], row["token"], row["tokens"]) for row in found] == [
        (0, 5, 3),
        (0, 6, 1),
        (2, 1, 2),
        (2, 6, 1),
        (2, 7, 1),
    ]
    assert found[0] == {
        "layer": LAYER,
        "expert": 0,
        "token": 5,
        "piece": "\u2581a",
        "tokens": 3,
        "share_of_expert": 0.75,
        "share_of_piece": 0.75,
    }


def test_experts_with_most_tokens_are_drawn(tmp_path):
    expert = np.array([[0, 1, 1, 2, 2], [3, 3, 3, 2, 2]])[..., None]
    given = record(expert=expert, kept=np.ones(expert.shape, bool), mask=None)
    path = tmp_path / "x.png"
    figure = figures.plot_tokens_of_experts(TOKENS, given, PIECES.get, path, max_experts=2)
    titles = [axis.get_title() for axis in figure.axes]
    assert titles == ["expert 2: 40.0% of the kept tokens", "expert 3: 30.0% of the kept tokens"]
    assert "2 smaller ones left out" in figure.get_suptitle()
    assert {row["expert"] for row in made.rows(path)} == {0, 1, 2, 3}


def test_each_column_says_what_its_numbers_are(tmp_path):
    expert = np.arange(10).reshape(2, 5, 1) % 5
    kept = np.ones(expert.shape, bool)
    given = record(expert=expert, kept=kept, mask=None, gates=np.full((2, 5, 5), 1 / 5))
    figure = figures.plot_tokens_of_experts(TOKENS, given, PIECES.get, tmp_path / "x.png")
    assert [axis.axison for axis in figure.axes] == [True] * 5 + [False] * 3
    assert [bool(axis.get_xlabel()) for axis in figure.axes[:5]] == [False] + [True] * 4


MODALITIES = {"modality": np.array([[0, 0, 1, 1, 1]] * 2), "modalities": ("image", "text")}


@pytest.mark.parametrize(
    ("tokens", "given", "options", "message"),
    [
        (TOKENS[:1], record(), {}, r"of shape \(2, 5\), those of the record. Received: int64 of"),
        (TOKENS * 1.0, record(), {}, "Received: float64"),
        (TOKENS, record(**MODALITIES), {}, r"take record.of_modality\('text'\)"),
        (TOKENS, record(kept=np.zeros((2, 5, 1), bool)), {}, "Received: none"),
        (TOKENS, record(), {"most": 0}, "most must be an integer"),
        (TOKENS, record(), {"max_experts": 0}, "max_experts must be an integer"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path, tokens, given, options, message):
    with pytest.raises(ValueError, match=message):
        figures.plot_tokens_of_experts(tokens, given, PIECES.get, tmp_path / "x.png", **options)
