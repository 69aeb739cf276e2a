"""Captions and prompts: their tokens, and the words that class names are put into."""
