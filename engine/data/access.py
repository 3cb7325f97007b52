"""What a request's addresses may reach, and with which credentials."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from engine.data.cancel import CancelToken


@dataclass(frozen=True)
class Credentials:
    """A job's own keys to an object store; they are used only for that job, and no repr shows them."""

    access_key: str = field(repr=False)
    secret_key: str = field(repr=False)
    session_token: str | None = field(default=None, repr=False)
    #: URL of the store; None: Amazon S3.
    endpoint: str | None = field(default=None, repr=False)
    region: str | None = None


@dataclass(frozen=True)
class Access:
    """What a request's addresses may reach. The core enforces it before any plugin opens an address."""

    #: Schemes that may be opened; a plain path has the scheme "path".
    schemes: tuple[str, ...] = ("path", "data")
    #: Folders in which paths must be; None: any folder.
    folders: tuple[Path, ...] | None = None
    max_bytes: int = 512 * 2**20
    #: Maximum seconds to open one address, and to open all addresses of a request.
    timeout: float = 60.0
    total_timeout: float = 300.0
    #: Maximum pixels of a picture; pictures of phones have 50 million.
    max_pixels: int = 2**26
    #: Maximum seconds of a voice, after its part of the file is selected.
    max_seconds: float = 3600.0
    #: Hosts that are allowed although they are not on the public internet: as in the address, in lower case.
    private_hosts: tuple[str, ...] = ()
    #: A job's own keys for s3:// addresses, with their store; None: the keys that are configured on this machine.
    credentials: Credentials | None = None
    #: Buckets that s3:// addresses may use with this machine's keys.
    buckets: tuple[str, ...] = ()
    #: URL and region of their store; None: as boto3 is configured.
    endpoint_url: str | None = None
    region: str | None = None
    #: Deadline for all of the request's addresses, on the clock of `time.monotonic`; the engine sets it.
    until: float | None = field(default=None, compare=False)
    #: It is set when the caller cancels the request; a plugin that waits must then raise Cancelled (engine.cancel).
    cancel: CancelToken | None = field(default=None, repr=False, compare=False)
