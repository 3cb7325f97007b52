"""A secret is hidden in every form in which it may stand, from logs and from callers alike."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from urllib.parse import quote

import pytest

from engine.redaction import HIDDEN, hide_secrets, redact, scrub

#: With what is spelled otherwise in a URL, in a repr and in an error of one line.
SECRET = "key  with/two blanks+'\\'"


@pytest.mark.parametrize("hide", [hide_secrets, redact, scrub])
@pytest.mark.parametrize(
    "form",
    [SECRET, " ".join(SECRET.split()), repr(SECRET)[1:-1], quote(SECRET), quote(SECRET, safe="")],
    ids=["as it is", "in one line", "in a repr", "in a URL", "in a query"],
)
def test_a_secret_is_hidden_in_each_form(hide: Callable[[str, Iterable[str]], str], form: str) -> None:
    assert hide(f"it was <{form}> then", (SECRET,)) == f"it was <{HIDDEN}> then"


def test_a_part_of_a_longer_secret_does_not_leave_the_rest() -> None:
    assert hide_secrets("sesame-open", ("sesame", "sesame-open")) == HIDDEN


def test_what_is_too_short_for_a_secret_hides_nothing() -> None:
    assert hide_secrets("a cat", ("a", "cat", "")) == "a cat"
