"""What LongCat's tests share."""

from __future__ import annotations

import pytest
from longcat_recordings import TinyAvatar


@pytest.fixture(scope="session")
def avatar() -> TinyAvatar:
    """The tiny network's recipe; every test builds its own model from it."""
    return TinyAvatar()
