"""HTML templates: what is filled in is text, and nothing is left out in silence."""

from __future__ import annotations

import pytest
from jinja2 import UndefinedError

from engine.text.pages import read_template


def test_what_is_filled_in_is_text_in_an_attribute_too() -> None:
    text = read_template("engine.serving.endpoint", "page.html").render(endpoint="\"><script>'&{{ 7 * 7 }}")
    assert '<meta name="endpoint" content="&#34;&gt;&lt;script&gt;&#39;&amp;{{ 7 * 7 }}">' in text


def test_a_name_that_nobody_gave_is_an_error() -> None:
    with pytest.raises(UndefinedError, match="endpoint"):
        read_template("engine.serving.endpoint", "page.html").render()
