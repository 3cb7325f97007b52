"""A job's own bucket and keys, kept out of every repr, log, copy and file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NoReturn

from engine.data import Credentials, Store


class SecretStore:
    """Holds a job's own bucket and keys; only `open` and `secrets` return them.

    It is not a dataclass, because `asdict`, which turns whole answers into JSON, would copy the keys.
    """

    __slots__ = ("_open",)

    def __init__(self, config: Mapping[str, Any]) -> None:
        """`config` is the job's s3Config, already checked against the schema."""
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
        # In a closure, so that not even a debugger's list of attributes shows a key.
        self._open: Callable[[], Store] = lambda: store

    def open(self) -> Store:
        """Return bucket and keys, for the call that needs them."""
        return self._open()

    def secrets(self) -> tuple[str, ...]:
        """Return the texts that must not appear in any answer."""
        keys = self._open().credentials
        texts = (keys.access_key, keys.secret_key, keys.session_token, keys.endpoint)
        return tuple(text for text in texts if text)

    def __repr__(self) -> str:
        return "SecretStore(...)"

    def __deepcopy__(self, memo: Any) -> SecretStore:
        return self

    def __reduce__(self) -> NoReturn:
        raise TypeError("a job's keys cannot be pickled")
