"""Settings of every test session."""

from tests.support import garbage


def pytest_collection_finish() -> None:
    """By now all that stays is imported."""
    garbage.search_seldom()
