"""Rows of token ids: EOS, cutting, unknown pieces, files."""

import builtins

import numpy as np
import pytest
import tensorflow as tf

from keras_vmoe import text

CAPTIONS = ["a red cat", "a red dog", "the green cat sleeps", "a dog"]


@pytest.fixture(scope="module")
def tokenizer():
    return text.train_tokenizer(CAPTIONS, 100, length=4)


def ids(tokenizer, *pieces):
    names = {tokenizer._processor.id_to_piece(i): i for i in range(tokenizer.vocabulary_size)}
    return [names[piece] for piece in pieces]


def test_rows_end_in_eos_until_they_are_full(tokenizer):
    a, red, cat = ids(tokenizer, "▁a", "▁red", "▁cat")
    rows = tokenizer(["a red cat", "cat", "", "a red cat cat", "a red cat cat a"])
    assert rows.dtype == tf.int32
    full = [a, red, cat, cat]
    assert rows.numpy().tolist() == [[a, red, cat, 1], [cat, 1, 1, 1], [1] * 4, full, full]
    assert tokenizer([]).shape == (0, 4)


def test_the_ids_are_those_of_the_file(tokenizer):
    assert (tokenizer.eos_id, tokenizer.unknown_id, tokenizer.length) == (1, 2, 4)
    assert tokenizer.unknown_id in tokenizer(["£"]).numpy()
    assert tokenizer(["the green cat sleeps"]).numpy().max() < tokenizer.vocabulary_size


def test_case_does_not_matter(tokenizer):
    rows = tokenizer(["A Red CAT", "a red cat"]).numpy()
    np.testing.assert_array_equal(*rows)
    accents = text.train_tokenizer(["élan größe"], 100)
    np.testing.assert_array_equal(*accents(["ÉLAN GRÖSSE".replace("SS", "ß"), "élan größe"]))
    assert accents.tokens("ÉLAN") == ["▁élan"]


def test_the_same_in_a_graph_of_unknown_batch_size(tokenizer):
    texts = [*CAPTIONS, "", "x y"]
    batches = tf.data.Dataset.from_tensor_slices(texts).batch(4).map(tokenizer)
    assert batches.element_spec.shape.as_list() == [None, 4]
    rows = np.concatenate(list(batches.as_numpy_iterator()))
    np.testing.assert_array_equal(rows, tokenizer(texts))


def test_seeds_that_are_set_later_take_nothing_away(tokenizer):
    words = text.train_tokenizer(CAPTIONS, 100, length=4)
    batches = tf.data.Dataset.from_tensor_slices(CAPTIONS).batch(2).map(words).repeat()
    iterator = batches.as_numpy_iterator()
    first = next(iterator)
    tf.random.set_seed(1)
    next(iterator)
    np.testing.assert_array_equal(next(iterator), first)
    np.testing.assert_array_equal(next(batches.as_numpy_iterator()), first)
    np.testing.assert_array_equal(words(CAPTIONS[:2]), first)


def test_counts_of_what_does_not_fit(tokenizer):
    texts = ["a dog", "a red cat cat", "££", "a £", "", "  ", "£ a red cat dog"]
    found = tokenizer.counts(iter(texts))
    assert found == text.TextCounts(texts=7, cut=2, unknown=1, empty=2, partly_unknown=2)
    is_cut = np.all(tokenizer(texts).numpy() != tokenizer.eos_id, axis=1)
    assert is_cut.sum() == found.cut
    assert tokenizer.counts([]) == text.TextCounts()
    many = tokenizer.counts(["a dog"] * 5000)
    assert many == text.TextCounts(texts=5000)


def test_pieces_are_not_cut(tokenizer):
    assert tokenizer.tokens("a red cat a dog") == ["▁a", "▁red", "▁cat", "▁a", "▁dog"]
    assert tokenizer.tokens("") == []


def test_a_token_has_a_piece(tokenizer):
    row = tokenizer(["a red cat"]).numpy()[0]
    assert [tokenizer.piece(token) for token in row[:4]] == ["▁a", "▁red", "▁cat", "</s>"]
    for token in (-1, tokenizer.vocabulary_size):
        with pytest.raises(ValueError, match=f"token={token}"):
            tokenizer.piece(token)


def test_files_round_trip(tokenizer, tmp_path):
    path = tmp_path / "made" / "words.model"
    tokenizer.save(path)
    assert [file.name for file in path.parent.iterdir()] == ["words.model"]
    again = text.Tokenizer.load(path, length=6)
    assert again.model == tokenizer.model == path.read_bytes()
    np.testing.assert_array_equal(again(CAPTIONS)[:, :4], tokenizer(CAPTIONS))
    assert again(CAPTIONS).shape == (4, 6)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no SentencePiece model: it is empty"),
        (b"hello, these are words", "no SentencePiece model.*b'hello"),
        (None, "no SentencePiece model, or not a whole one"),
    ],
)
def test_files_that_are_no_model(tokenizer, tmp_path, content, message):
    path = tmp_path / "words.model"
    path.write_bytes(tokenizer.model[:150] if content is None else content)
    with pytest.raises(ValueError, match=rf"words\.model: this is {message}"):
        text.Tokenizer.load(path)
    with pytest.raises(FileNotFoundError, match="train one with keras-vmoe vocabulary"):
        text.Tokenizer.load(tmp_path / "nowhere")


def test_a_model_without_eos_is_refused(tokenizer, monkeypatch):
    import sentencepiece

    monkeypatch.setattr(sentencepiece.SentencePieceProcessor, "eos_id", lambda self: -1)
    with pytest.raises(ValueError, match="has no EOS"):
        text.Tokenizer(tokenizer.model)


@pytest.mark.parametrize("length", [1, 0, -3, 2.5, True])
def test_lengths_that_are_too_short(tokenizer, length):
    with pytest.raises(ValueError, match=f"length={length}: expected a whole number of 2"):
        text.Tokenizer(tokenizer.model, length)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ("a dog", r"texts='a dog': expected a list: \['a dog'\]"),
        (["a dog", 3], r"texts\[1\]=3: expected a string"),
        ([None], r"texts\[0\]=None"),
        (tf.constant([1, 2]), r"texts of int32 \(2,\)"),
        (tf.constant("a dog"), r"texts of string \(\): .*\[n\]"),
    ],
)
def test_what_is_no_list_of_texts(tokenizer, texts, message):
    with pytest.raises(ValueError, match=message):
        tokenizer(texts)


@pytest.mark.parametrize("library", ["sentencepiece", "tensorflow_text"])
def test_what_is_missing_is_named(tokenizer, monkeypatch, library):
    real_import = builtins.__import__

    def without(name, *args, **options):
        if name == library:
            raise ImportError(name)
        return real_import(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r"pip install 'keras-vmoe\[text\]'"):
        text.Tokenizer(tokenizer.model)
