"""Vocabularies of few captions: deterministic, whole words, clear errors."""

import pytest

from keras_vmoe import text

CAPTIONS = ["top left three top right seven", "the Digit three", "seven", "a scan of a seven"]


def test_the_same_captions_give_the_same_bytes():
    first, second = (text.train_tokenizer(iter(CAPTIONS), 100) for _ in range(2))
    assert first.model == second.model
    assert first.model != text.train_tokenizer(CAPTIONS[:2], 100).model


def test_each_of_few_words_is_one_token():
    tokenizer = text.train_tokenizer(CAPTIONS, 1000, length=7)
    assert tokenizer.vocabulary_size < 100
    for caption in CAPTIONS:
        assert tokenizer.tokens(caption) == [f"▁{word}" for word in caption.lower().split()]
    assert tokenizer.counts(CAPTIONS).cut == 0
    pieces = [tokenizer._processor.id_to_piece(number) for number in range(3)]
    assert pieces == ["<pad>", "</s>", "<unk>"]


def test_a_small_size_is_kept():
    assert text.train_tokenizer(CAPTIONS, 30).vocabulary_size == 30


def test_captions_beyond_the_limit_are_not_read():
    captions = iter([*CAPTIONS, "zebra"])
    tokenizer = text.train_tokenizer(captions, 100, max_captions=4)
    assert next(captions) == "zebra"
    assert tokenizer.unknown_id in tokenizer(["z"]).numpy()


def test_empty_captions_are_left_out():
    assert text.train_tokenizer(["", *CAPTIONS, "  \n"], 100).model == (
        text.train_tokenizer(CAPTIONS, 100).model
    )


@pytest.mark.parametrize("captions", [[], ["", " "]])
def test_no_captions_are_an_error(captions):
    with pytest.raises(ValueError, match="captions: there are none, or all are empty"):
        text.train_tokenizer(captions, 100)


def test_what_is_no_caption_is_named():
    with pytest.raises(ValueError, match=r"captions\[1\]=7: expected a string"):
        text.train_tokenizer(["a", 7], 100)


@pytest.mark.parametrize("size", [4, 12])
def test_a_size_without_room_for_the_letters_tells_the_least(size):
    with pytest.raises(ValueError, match=f"vocabulary_size={size} has no room") as caught:
        text.train_tokenizer(CAPTIONS, size)
    least = int(str(caught.value).split("give ")[1].split()[0])
    assert text.train_tokenizer(CAPTIONS, least).vocabulary_size == least


@pytest.mark.parametrize("name", ["vocabulary_size", "max_captions"])
@pytest.mark.parametrize("value", [0, -1, 1.5])
def test_sizes_out_of_range(name, value):
    with pytest.raises(ValueError, match=f"{name}={value}: expected a whole number"):
        text.train_tokenizer(CAPTIONS, **({"vocabulary_size": 100} | {name: value}))
