"""A job's own keys, shut away from every repr, log, copy and file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NoReturn

from engine.data import Credentials, Store


class Sealed:
    """Holds a job's own bucket and keys; `open` alone gives them out.

    Not a dataclass: `asdict`, which turns whole answers into JSON, would go through it.
    """

    __slots__ = ("_open",)

    def __init__(self, config: Mapping[str, Any]) -> None:
        """Take what the schema accepts as s3Config."""
        store = Store(
            bucket=config["bucketName"],
            credentials=Credentials(
                access_key=config["accessId"],
                secret_key=config["accessSecret"],
                session_token=config.get("sessionToken"),
                endpoint=config.get("endpointUrl"),
                region=config.get("region"),
            ),
        )
        # In a function, so that not even a debugger's view of the attributes shows a key.
        self._open: Callable[[], Store] = lambda: store

    def open(self) -> Store:
        """Return bucket and keys, for the one call that needs them."""
        return self._open()

    def secrets(self) -> tuple[str, ...]:
        """Return the texts that no answer may hold."""
        keys = self._open().credentials
        found = (keys.access_key, keys.secret_key, keys.session_token, keys.endpoint)
        return tuple(text for text in found if text)

    def __repr__(self) -> str:
        return "Sealed(...)"

    def __deepcopy__(self, memo: Any) -> Sealed:
        return self

    def __reduce__(self) -> NoReturn:
        raise TypeError("a job's keys are not written down")
