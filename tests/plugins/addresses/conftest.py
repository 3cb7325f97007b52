"""A folder to download into, and a check of what is refused."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from downloads import ACCESS, SECRET, Refused

from engine import Access
from engine.errors import RequestError
from engine.net.guard import look_up


@pytest.fixture(autouse=True)
def _all_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)


@pytest.fixture
def into(tmp_path: Path) -> Path:
    folder = tmp_path / "into"
    folder.mkdir()
    return folder


@pytest.fixture
def refused(into: Path, caplog: pytest.LogCaptureFixture, request: pytest.FixtureRequest) -> Refused:
    """Return a call of the module's FETCH that must fail with code and hint, give no secret away and leave no file."""

    def call(
        address: str, code: str, access: Access = ACCESS, resolve: Callable[..., Sequence[str]] = look_up
    ) -> RequestError:
        with pytest.raises(RequestError) as told:
            request.module.FETCH(address, access, into, resolve=resolve)
        error = told.value
        assert error.code == code, error
        assert error.hint
        assert list(into.iterdir()) == []
        assert SECRET not in "".join(traceback.format_exception(error)) + caplog.text
        return error

    return call
