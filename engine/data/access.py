"""What a request's addresses may reach, and with whose keys."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from engine.data.cancel import CancelToken


@dataclass(frozen=True)
class Credentials:
    """A job's own keys to an object store; they live as long as the job, and no repr shows them."""

    access_key: str = field(repr=False)
    secret_key: str = field(repr=False)
    session_token: str | None = field(default=None, repr=False)
    #: URL of the store; None: Amazon's.
    endpoint: str | None = field(default=None, repr=False)
    region: str | None = None


@dataclass(frozen=True)
class Access:
    """What a request's addresses may reach. The core enforces it before any plugin opens an address."""

    #: Schemes that may be opened; a plain path has the scheme "path".
    schemes: tuple[str, ...] = ("path", "data")
    #: Folders below which paths may lie; None: anywhere.
    folders: tuple[Path, ...] | None = None
    max_bytes: int = 512 * 2**20
    #: Seconds to open one address, and all of a request's together.
    timeout: float = 60.0
    total_timeout: float = 300.0
    #: Most pixels of a picture: phones make 50 million.
    max_pixels: int = 2**26
    #: Longest voice in seconds, of what is taken of its file.
    max_seconds: float = 3600.0
    #: Hosts that may be fetched from although they are not on the public internet: as in the address, in lower case.
    private_hosts: tuple[str, ...] = ()
    #: A job's own keys for s3:// addresses, with their store; None: those that are configured on this machine.
    credentials: Credentials | None = None
    #: Buckets that may be named where this machine's keys open them.
    buckets: tuple[str, ...] = ()
    #: URL and region of the store that has them; None: as boto3 is configured.
    endpoint_url: str | None = None
    region: str | None = None
    #: When the time for all of the request's addresses is over, on the clock of `time.monotonic`; the engine sets it.
    until: float | None = field(default=None, compare=False)
    #: Set once the caller withdrew the request: a plugin that waits raises Cancelled then (engine.cancel).
    cancel: CancelToken | None = field(default=None, repr=False, compare=False)
