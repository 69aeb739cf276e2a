"""Models too big to allocate."""

import contextlib
from collections.abc import Iterator

import keras
from keras.src.backend.common import global_state


@contextlib.contextmanager
def unallocated() -> Iterator[None]:
    """Variables that are made within have shapes and names, but no values, ever."""
    before = list(global_state.get_global_attribute("uninitialized_variables", []) or [])
    with keras.StatelessScope(initialize_variables=False):
        yield
    # Keras would make up for it as soon as the next such scope ends.
    global_state.set_global_attribute("uninitialized_variables", before)
