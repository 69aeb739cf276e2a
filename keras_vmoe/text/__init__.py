"""Captions and prompts: their tokens, and the words that class names are put into."""

from keras_vmoe.text.tokenizer import TextCounts as TextCounts
from keras_vmoe.text.tokenizer import Tokenizer as Tokenizer
from keras_vmoe.text.vocabulary import train_tokenizer as train_tokenizer
