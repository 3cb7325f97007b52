"""docs/speed.md has today's predictions, and they keep to the bars that the page states."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.planning.gpus import cards
from scripts.page_tables import replaced
from scripts.speed_tables import BARS, FAST, PUBLIC, before, few_steps, tables

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def unadvised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.service.advise", lambda estimates, *_: estimates)


@pytest.mark.slow
def test_the_page_has_todays_tables() -> None:
    page = (ROOT / "docs" / "speed.md").read_text("utf-8")
    assert page == replaced(page, tables()), "python -m scripts.speed_tables --write"


@pytest.mark.parametrize(("card", "what"), BARS)
def test_predictions_keep_to_their_bars(card: str, what: str) -> None:
    few = few_steps(card)
    assert (few.forward_seconds if what == "forward" else few.window_seconds) <= BARS[card, what]


def test_each_card_has_a_recipe_that_fits_it_and_is_faster_than_before() -> None:
    assert set(FAST) == {card.name for card in cards()}
    for card in cards():
        few = few_steps(card.name)
        assert few.fits, card.name
        assert few.forward_seconds < 0.8 * before(card)[0], card.name


def test_public_figures_are_of_known_cards_and_have_a_source() -> None:
    assert {one.card for one in PUBLIC} <= set(FAST)
    assert all(one.source.startswith("https://") for one in PUBLIC)
