import pytest
from hasty import hurry


@pytest.fixture
def hasty(monkeypatch):
    """A clock that is content with short turns, and small sizes: nothing is concluded from it."""
    hurry(monkeypatch)
