"""From texts to rows of token ids of one length."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import tensorflow as tf

# Texts that are counted at a time.
_CHUNK = 4096
# How SentencePiece writes the space before a word.
_SPACE = "\u2581"


class TextCounts(NamedTuple):
    """How well a tokenizer fits some texts.

    Args:
        texts: how many there are.
        cut: those whose tokens fill a row, so that their end, EOS at least, is lost.
        unknown: those made of pieces alone that the vocabulary lacks.
        empty: those without any piece.
        partly_unknown: those with such pieces among others.
    """

    texts: int = 0
    cut: int = 0
    unknown: int = 0
    empty: int = 0
    partly_unknown: int = 0


class Tokenizer:
    """Turns texts into token ids by a SentencePiece model, in Python and within `tf.data`.

    Texts are made lower-case. After the tokens of a text comes EOS, which also fills the rest of
    the row ("sticky"). A text of `length` tokens or more is cut there and holds no EOS. Pieces that
    the vocabulary lacks become `unknown_id`; an empty text is a row of EOS. Neither is an error:
    `counts` tells how many there are.

    Args:
        model: the content of a SentencePiece model file.
        length: number of tokens of a row, EOS included, 16 in LiT and LIMoE.

    Raises:
        ImportError: if sentencepiece or tensorflow-text is not installed.
        ValueError: if `model` is no SentencePiece model or lacks EOS, or `length` is below 2.

    Example:
        >>> from keras_vmoe import text
        >>> words = text.train_tokenizer(["a cat", "a dog", "the dog"], 40, length=4)
        >>> tokens = words(["The dog", "a dog a dog"]).numpy()
        >>> (tokens == words.eos_id).tolist()
        [[False, False, True, True], [False, False, False, False]]
        >>> words.tokens("The dog")
        ['▁the', '▁dog']

    Reference:
        Kudo and Richardson, "SentencePiece", EMNLP 2018 (https://arxiv.org/abs/1808.06226); rows
        as in Zhai et al., "LiT", CVPR 2022, whose code pads with EOS
        (https://github.com/google-research/big_vision).
    """

    def __init__(self, model: bytes, length: int = 16):
        if isinstance(length, bool) or length != int(length) or length < 2:
            raise ValueError(f"length={length!r}: expected a whole number of 2 or more.")
        self._processor = _read_model(model)
        self._model, self._length = bytes(model), int(length)
        import_tensorflow_text()

    @classmethod
    def load(cls, path: str | Path, length: int = 16) -> Tokenizer:
        """Reads the SentencePiece model file of a tokenizer, this package's or another's.

        Args:
            path: the file.
            length: number of tokens of a row.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if it is no SentencePiece model, or has no EOS.
        """
        path = Path(path).expanduser()
        if not path.is_file():
            raise FileNotFoundError(
                f"{path}: there is no such vocabulary; train one with keras-vmoe vocabulary."
            )
        try:
            return cls(path.read_bytes(), length)
        except _ModelError as error:
            raise ValueError(f"{path}: {error}") from error

    def save(self, path: str | Path) -> None:
        """Writes the SentencePiece model file, whole or not at all.

        Args:
            path: the file, which is replaced; its folder is made if need be.
        """
        path = Path(path).expanduser()
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
        try:
            temporary.write_bytes(self._model)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)

    @property
    def model(self) -> bytes:
        """The content of the SentencePiece model file."""
        return self._model

    @property
    def length(self) -> int:
        """The number of tokens of a row."""
        return self._length

    @property
    def vocabulary_size(self) -> int:
        """The number of token ids, those of padding, EOS and unknown pieces included."""
        return self._processor.vocab_size()

    @property
    def eos_id(self) -> int:
        """The token that ends a text and fills the rest of its row."""
        return self._processor.eos_id()

    @property
    def unknown_id(self) -> int:
        """The token of pieces that the vocabulary lacks."""
        return self._processor.unk_id()

    def __call__(self, texts: Sequence[str] | tf.Tensor) -> tf.Tensor:
        """Tokenizes texts.

        Args:
            texts: strings, or a string tensor `[n]`, also one of a `tf.data` graph.

        Returns:
            int32 `[n, length]`.

        Raises:
            ValueError: if `texts` is a single string, or holds something else than strings.
        """
        tokens = self._split(_as_tensor(texts))[:, : self._length]
        return tokens.to_tensor(self.eos_id, shape=(None, self._length))

    def tokens(self, text: str) -> list[str]:
        """Returns the pieces of one text, uncut and without EOS.

        Args:
            text: the text.

        Raises:
            ValueError: if it is not a string.
        """
        ids = self._split(_as_tensor([text]))[0].numpy().tolist()
        return [self._processor.id_to_piece(number) for number in ids]

    def piece(self, token: int) -> str:
        """Returns the piece of a token.

        Args:
            token: its id.

        Raises:
            ValueError: an id that the vocabulary lacks.

        Example:
            >>> from keras_vmoe import text
            >>> words = text.train_tokenizer(["a cat", "a dog"], 40)
            >>> [words.piece(token) for token in words(["a cat"])[0, :3].numpy()]
            ['▁a', '▁cat', '</s>']
        """
        if not 0 <= token < self.vocabulary_size:
            raise ValueError(f"token={token}: expected an id of 0 to {self.vocabulary_size - 1}.")
        return self._processor.id_to_piece(int(token))

    def counts(self, texts: Iterable[str]) -> TextCounts:
        """Tells how many texts are cut, made of unknown pieces alone, or empty.

        Args:
            texts: any number of strings.

        Raises:
            ValueError: if one of them is not a string.

        Example:
            >>> from keras_vmoe import text
            >>> words = text.train_tokenizer(["a cat", "a dog"], 40, length=4)
            >>> words.counts(["a cat", "a cat a cat", "123", " "])
            TextCounts(texts=4, cut=1, unknown=1, empty=1, partly_unknown=0)
        """
        found = TextCounts()
        texts = iter([texts] if isinstance(texts, str) else texts)
        while chunk := list(itertools.islice(texts, _CHUNK)):
            rows = self._count(_as_tensor(chunk))
            found = TextCounts(*(a + b for a, b in zip(found, rows, strict=True)))
        return found

    def _count(self, texts: tf.Tensor) -> TextCounts:
        import tensorflow as tf

        tokens = self._split(texts)
        space = self._processor.piece_to_id(_SPACE)
        # Before a word that is not known the space may be a piece of its own.
        pieces = tf.ragged.boolean_mask(tokens, (tokens != space) | (tokens == self.unknown_id))
        sizes = pieces.row_lengths()
        lacking = tf.reduce_sum(tf.cast(pieces == self.unknown_id, tf.int64), axis=1)
        flags = (
            tokens.row_lengths() >= self._length,
            (lacking == sizes) & (sizes > 0),
            sizes == 0,
            (lacking > 0) & (lacking < sizes),
        )
        return TextCounts(len(texts), *(int(tf.math.count_nonzero(flag)) for flag in flags))

    def _split(self, texts: tf.Tensor) -> tf.RaggedTensor:
        import tensorflow as tf

        # Made where it is used: its op owns the model, and whatever empties TensorFlow's cache of
        # eager ops, as tf.random.set_seed does, would take it away from graphs made before.
        splitter = import_tensorflow_text().SentencepieceTokenizer(self._model, tf.int32)
        return splitter.tokenize(tf.strings.lower(texts, encoding="utf-8"))


class _ModelError(ValueError):
    """Bytes that are no SentencePiece model for texts that end."""


def _read_model(model: bytes) -> Any:
    try:
        import sentencepiece
    except ImportError as error:
        raise _not_installed("sentencepiece") from error
    if not isinstance(model, bytes | bytearray):
        raise ValueError(
            f"model: expected the bytes of a SentencePiece model, got {type(model).__name__}; "
            "Tokenizer.load reads a file."
        )
    if not model:
        raise _ModelError("this is no SentencePiece model: it is empty.")
    try:
        processor = sentencepiece.SentencePieceProcessor(model_proto=bytes(model))
    except RuntimeError as error:
        raise _ModelError(
            f"this is no SentencePiece model, or not a whole one: it begins with {model[:16]!r}."
        ) from error
    if processor.eos_id() < 0:
        raise _ModelError(
            "this SentencePiece model has no EOS, which ends and pads every text: train one with "
            "eos_id, as keras-vmoe vocabulary does."
        )
    return processor


def import_tensorflow_text() -> Any:
    """The module of the tokenizer's operations, which graphs that hold them need to be loaded.

    Raises:
        ImportError: if it is not installed.
    """
    try:
        import tensorflow_text
    except ImportError as error:
        raise _not_installed("tensorflow-text") from error
    return tensorflow_text


def _not_installed(library: str) -> ImportError:
    return ImportError(f"a tokenizer needs {library}: pip install 'keras-vmoe[text]'.")


def _as_tensor(texts: Sequence[str] | tf.Tensor) -> tf.Tensor:
    """Returns a string tensor `[n]`, or says what is no text."""
    import tensorflow as tf

    if isinstance(texts, str | bytes):
        raise ValueError(f"texts={texts!r}: expected a list: [{texts!r}].")
    if not tf.is_tensor(texts):
        for place, text in enumerate(texts):
            if not isinstance(text, str | bytes):
                raise ValueError(f"texts[{place}]={text!r}: expected a string.")
        texts = tf.constant(list(texts), tf.string)
    if texts.dtype != tf.string or texts.shape.rank != 1:
        raise ValueError(
            f"texts of {texts.dtype.name} {texts.shape}: expected strings, one axis [n]."
        )
    return texts
