"""How a caller cancels a request."""

from __future__ import annotations

from typing import Protocol


class CancelToken(Protocol):
    """Reports whether the caller cancelled the request; a `threading.Event` is one."""

    def is_set(self) -> bool: ...
