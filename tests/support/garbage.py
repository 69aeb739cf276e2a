"""Python's search for garbage, which by default takes a fifth of the time of the tests."""

import gc


def search_seldom() -> None:
    """Leaves alone what is there, and searches after 20,000 new objects instead of 700.

    TensorFlow and Keras are millions of objects that stay, and a graph that is traced makes many
    thousands more. What tests leave behind is still found, only later.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)
