"""A published video in a bucket: a playlist, and the parts that it names."""

from __future__ import annotations

import secrets
from collections.abc import Callable

from engine.data.cancel import CancelToken
from engine.data.live import PLAYLIST, PLAYLIST_TYPE

#: Parts never change under their names; the playlist changes with each part.
_FOREVER, _NEVER = "public, max-age=31536000, immutable", "no-cache"

#: (key, content, headers, cancel): stores an object. Raises SinkError and Cancelled.
Write = Callable[[str, bytes, dict[str, str], CancelToken | None], None]


class S3LiveFolder:
    """Keys below one prefix. The playlist names its parts by full URLs, because presigned ones have signatures."""

    def __init__(
        self,
        prefix: str,
        *,
        write: Write,
        url: Callable[[str], str],
        remove: Callable[[list[str]], None],
        cancel: CancelToken | None = None,
    ) -> None:
        """`url` returns the address of a key; `remove` deletes keys. They raise SinkError."""
        self._prefix, self._write, self._url, self._remove, self._cancel = prefix, write, url, remove, cancel
        # Another attempt of the same job may make other bytes, and caches keep parts.
        self._attempt = secrets.token_hex(4)
        self._keys: list[str] = []
        self._address = ""

    @property
    def address(self) -> str:
        """See `LiveFolder`. Signed once, so that it stays the same in all progress updates."""
        if not self._address:
            self._address = self._url(f"{self._prefix}/{PLAYLIST}")
        return self._address

    def part(self, name: str, content: bytes, media_type: str) -> str:
        """See `LiveFolder`."""
        key = f"{self._prefix}/{self._attempt}-{name}"
        self._write(key, content, {"ContentType": media_type, "CacheControl": _FOREVER}, self._cancel)
        self._keys.append(key)
        return self._url(key)

    def playlist(self, text: str) -> None:
        """See `LiveFolder`. It does not end with the job: a cancelled job's playlist has to be ended, too."""
        key = f"{self._prefix}/{PLAYLIST}"
        self._write(key, text.encode(), {"ContentType": PLAYLIST_TYPE, "CacheControl": _NEVER}, None)
        if key not in self._keys:
            self._keys.append(key)

    def remove(self) -> None:
        """See `LiveFolder`."""
        self._remove(self._keys)
