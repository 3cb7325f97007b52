"""The garbage collector is off while libraries are imported, and then as it was."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import suppress

import pytest

from engine.imports import collection
from engine.imports.collection import uncollected


@pytest.fixture(autouse=True)
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(collection, "_own_process", False)
    frozen = gc.get_freeze_count()
    yield
    gc.enable()
    if not frozen:
        gc.unfreeze()


def test_the_collector_is_off_inside_and_on_again_after_an_error() -> None:
    inside = []
    with suppress(KeyError), uncollected():
        inside.append(gc.isenabled())
        raise KeyError

    assert inside == [False]
    assert gc.isenabled()


def test_a_collector_that_is_off_stays_off() -> None:
    gc.disable()
    with uncollected():
        pass

    assert not gc.isenabled()


def test_only_a_process_of_our_own_ignores_what_is_there() -> None:
    before = gc.get_freeze_count()
    with uncollected(final=True):
        pass
    assert gc.get_freeze_count() == before

    collection.own_process()
    with uncollected():
        pass
    assert gc.get_freeze_count() == before
    with uncollected(final=True):
        pass
    assert gc.get_freeze_count() > before
