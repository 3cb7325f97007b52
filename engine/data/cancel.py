"""How a caller withdraws a request."""

from __future__ import annotations

from typing import Protocol


class CancelToken(Protocol):
    """Says whether the caller withdrew the request; `threading.Event` is one."""

    def is_set(self) -> bool: ...
