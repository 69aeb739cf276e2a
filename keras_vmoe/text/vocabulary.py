"""Vocabularies made of captions."""

from __future__ import annotations

import io
import itertools
import re
from collections.abc import Iterable, Iterator

from keras_vmoe.text.tokenizer import Tokenizer

PAD_ID, EOS_ID, UNKNOWN_ID = 0, 1, 2


def train_tokenizer(
    captions: Iterable[str],
    vocabulary_size: int,
    length: int = 16,
    max_captions: int = 1_000_000,
) -> Tokenizer:
    """Trains a SentencePiece vocabulary (a unigram model) on captions, made lower-case.

    The same captions give the same bytes. Token 0 is padding (which `Tokenizer` does not use), 1
    is EOS, 2 stands for unknown pieces. Where captions have few distinct words, each becomes one
    token, and `Tokenizer.vocabulary_size` tells how many tokens were found.

    Args:
        captions: the captions; empty ones are left out.
        vocabulary_size: how many tokens there may be, 32,000 in LIMoE.
        length: number of tokens of a row of the tokenizer.
        max_captions: how many captions are read, from the first.

    Returns:
        The tokenizer.

    Raises:
        ImportError: if sentencepiece or tensorflow-text is not installed.
        ValueError: if there are no captions, one is no string, or the size has no room for their
            characters.

    Example:
        >>> words = train_tokenizer(["a red cat", "a red dog", "the cat"], vocabulary_size=100)
        >>> words.tokens("A red dog")
        ['▁a', '▁red', '▁dog']

    Reference:
        Kudo, "Subword regularization", ACL 2018, section 3.2 (https://arxiv.org/abs/1804.10959).
    """
    # Three tokens are no pieces.
    for name, value, least in (
        ("vocabulary_size", vocabulary_size, 4),
        ("max_captions", max_captions, 1),
    ):
        if isinstance(value, bool) or value != int(value) or value < least:
            raise ValueError(f"{name}={value!r}: expected a whole number of {least} or more.")
    try:
        import sentencepiece
    except ImportError as error:
        raise ImportError(
            "a vocabulary needs sentencepiece: pip install 'keras-vmoe[text]'."
        ) from error
    sentences = _Sentences(itertools.islice(captions, int(max_captions)))
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(sentences),
            model_writer=model,
            model_type="unigram",
            vocab_size=int(vocabulary_size),
            hard_vocab_limit=False,
            pad_id=PAD_ID,
            eos_id=EOS_ID,
            unk_id=UNKNOWN_ID,
            bos_id=-1,
            num_threads=1,
            minloglevel=2,
        )
    except RuntimeError as error:
        if sentences.error is not None:
            raise sentences.error from None
        raise _explained(error, vocabulary_size) from error
    return Tokenizer(model.getvalue(), length)


class _Sentences:
    """What SentencePiece is trained on: the captions, then each of their words twice in a row.

    It takes as candidates for pieces the strings that not always the same follows, before it splits
    captions into words. Of "dog dog" it takes "dog", which a space and the end follow; of captions
    that all end in "dog" it would not.
    """

    def __init__(self, captions: Iterable[str]):
        self._captions = captions
        # SentencePiece reports an error of its input as one of its own.
        self.error: ValueError | None = None

    def __iter__(self) -> Iterator[str]:
        words: set[str] = set()
        for place, caption in enumerate(self._captions):
            if not isinstance(caption, str):
                self.error = ValueError(f"captions[{place}]={caption!r}: expected a string.")
                raise self.error
            found = caption.lower().split()
            if found:
                yield " ".join(found)
            words.update(found)
        if not words:
            self.error = ValueError("captions: there are none, or all are empty.")
            raise self.error
        yield from (f"{word} {word}" for word in sorted(words))


def _explained(error: RuntimeError, vocabulary_size: int) -> Exception:
    """Returns the error with the least size where the size is too small."""
    least = re.search(r"smaller than required_chars\. \d+ vs (\d+)", str(error))
    if least is None:
        return RuntimeError(f"SentencePiece cannot train a vocabulary: {error}")
    return ValueError(
        f"vocabulary_size={vocabulary_size} has no room for the characters of the captions: give "
        f"{least[1]} or more."
    )
