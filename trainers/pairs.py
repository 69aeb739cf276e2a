"""Image-text pairs as a run takes them: with the tokenizer of their captions."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

from keras_vmoe import data, text


class Pairs:
    """A dataset of image-text pairs, and the tokenizer of its captions.

    Args:
        source: the pairs.
        vocabulary: the SentencePiece file of the tokenizer; None: it is trained from the captions
            to train on, when it is first asked for.
        vocabulary_size: of one that is trained.
        text_length: tokens of a text, its end included.
    """

    def __init__(
        self,
        source: data.PairSource,
        vocabulary: str | None,
        vocabulary_size: int,
        text_length: int,
    ) -> None:
        self.source, self._size, self._length = source, vocabulary_size, text_length
        self._vocabulary = None if vocabulary is None else Path(vocabulary).expanduser()
        self._tokenizer: text.Tokenizer | None = None
        self.name, self.image_shape = source.name, source.image_shape
        self.train, self.eval = source.train, source.eval

    @property
    def skipped(self) -> tuple[str, ...]:
        """The images left out because they cannot be decoded, each with the reason."""
        return self.source.skipped

    @property
    def tokenizer(self) -> text.Tokenizer:
        """The tokenizer of the captions.

        Raises:
            OSError: a vocabulary that is not there.
            ValueError: one that is none.
        """
        if not self._tokenizer and self._vocabulary:
            self._tokenizer = text.Tokenizer.load(self._vocabulary, self._length)
        if not self._tokenizer:
            captions = itertools.chain.from_iterable(data.read_captions(self.train))
            self._tokenizer = text.train_tokenizer(captions, self._size, self._length)
        return self._tokenizer

    def take_tokenizer(self, path: Path) -> None:
        """Takes the tokenizer that a run was trained with in place of this one.

        Args:
            path: the run's file.

        Raises:
            OSError: if it is not there.
            ValueError: if it is none, or another vocabulary is asked for.
        """
        kept = text.Tokenizer.load(path, self._length)
        asked = self._vocabulary
        if asked and asked.is_file() and asked.read_bytes() != kept.model:
            raise ValueError(
                f"pairs.vocabulary={str(asked)!r} is another than that of the run, {path}; use "
                "another --workdir, or that file"
            )
        self._tokenizer = kept


def load(
    name: str,
    data_dir: str | None = None,
    train_split: str | None = None,
    eval_split: str | None = None,
    image_field: str = "image",
    caption_field: str | None = None,
    templates: Sequence[str] | None = None,
    max_corrupt: int = 0,
    verify: bool = True,
    vocabulary: str | None = None,
    vocabulary_size: int = 32_000,
    text_length: int = 16,
) -> Pairs:
    """Loads image-text pairs and their tokenizer. Gin calls it `pairs`.

    Args:
        name: as of `data.load_pairs`, and so are `data_dir`, `train_split`, `eval_split`,
            `image_field`, `caption_field`, `templates`, `max_corrupt` and `verify`.
        vocabulary: a SentencePiece file, such as `keras-vmoe vocabulary` writes; None: it is
            trained from the captions to train on.
        vocabulary_size: of one that is trained; less where the captions have fewer words.
        text_length: tokens of a text, its end included; longer captions are cut.

    Returns:
        A `Pairs`.

    Raises:
        OSError: files that are missing or cannot be fetched.
        ValueError: a wrong name, damaged files, a file that is no vocabulary.

    Example:
        >>> pairs = load("digit_grids", vocabulary_size=64)
        >>> pairs.train.num_examples, pairs.tokenizer.length
        (20000, 16)
    """
    source = data.load_pairs(
        name,
        data_dir,
        train_split=train_split,
        eval_split=eval_split,
        image_field=image_field,
        caption_field=caption_field,
        templates=templates,
        max_corrupt=max_corrupt,
        verify=verify,
    )
    return Pairs(source, vocabulary, vocabulary_size, text_length)
