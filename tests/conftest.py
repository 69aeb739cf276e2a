"""Settings of every test session."""

import os

from tests.support import garbage

# There is a worker a core, and each would start threads for every core, which then wait for one
# another. Whoever sets these variables decides.
if "PYTEST_XDIST_WORKER" in os.environ:
    for threads in ("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS", "OMP_NUM_THREADS"):
        os.environ.setdefault(threads, "1")


def pytest_collection_finish() -> None:
    """By now all that stays is imported."""
    garbage.search_seldom()
