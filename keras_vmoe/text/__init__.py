"""Captions and prompts: their tokens, and the words that class names are put into."""

from keras_vmoe.text.prompts import TEMPLATES as TEMPLATES
from keras_vmoe.text.prompts import canonical_name as canonical_name
from keras_vmoe.text.prompts import prompts as prompts
from keras_vmoe.text.prompts import read_class_names as read_class_names
from keras_vmoe.text.prompts import templates as templates
from keras_vmoe.text.tokenizer import TextCounts as TextCounts
from keras_vmoe.text.tokenizer import Tokenizer as Tokenizer
from keras_vmoe.text.vocabulary import train_tokenizer as train_tokenizer
