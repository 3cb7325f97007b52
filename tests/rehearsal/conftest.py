"""What tests of the pretended card share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from engine.planning.gpus import cards
from engine.rehearsal.card import pretended
from engine.rehearsal.ledger import Ledger

CARD = cards()[0]


@pytest.fixture
def ledger() -> Iterator[Ledger]:
    """What is counted on a pretended card, which is there as long as the test runs."""
    with pretended(CARD) as counted:
        yield counted
